"""The streaming writer against the safetensors library, and the reader against damaged folders."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from modeling_siglip_ext.conversion.containers.safetensors_files import INDEX, SafetensorsWriter, read_safetensors
from modeling_siglip_ext.conversion.errors import CheckpointError


TENSORS = {
    "b": torch.randn(3, 5),
    "a": torch.randn(7),
    "empty": torch.zeros(0, 2),
    "scalar": torch.tensor(2.5),
    "blocks": torch.randn(6, 2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_library_reads_what_is_written_in_any_order(dtype, tmp_path):
    shapes = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    with SafetensorsWriter(tmp_path, shapes, dtype) as writer:
        for block in (2, 0, 1):
            assert writer.write("blocks", TENSORS["blocks"][2 * block : 2 * block + 2], block, 3)
        for name in ("scalar", "a", "empty"):
            assert writer.write(name, TENSORS[name])
        assert writer.write("b", TENSORS["b"].T.contiguous().T)
    read = load_file(tmp_path / "model.safetensors")
    assert set(read) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(read[name], tensor.to(dtype))
        assert torch.equal(read_safetensors(tmp_path)[name].load(), tensor.to(dtype))


def test_shards_hold_everything_once(tmp_path):
    shapes = {f"t{i}": (100,) for i in range(10)}
    with SafetensorsWriter(tmp_path, shapes, torch.float32, max_shard_size="1KB") as writer:
        for i in range(10):
            writer.write(f"t{i}", torch.full((100,), float(i)))
    index = json.loads((tmp_path / INDEX).read_text())
    assert len(set(index["weight_map"].values())) == 5
    assert index["metadata"]["total_size"] == 4000
    arrays = read_safetensors(tmp_path)
    assert [arrays[f"t{i}"].load()[0].item() for i in range(10)] == list(range(10))


def test_values_that_are_not_finite_as_stored_are_reported(tmp_path):
    with SafetensorsWriter(tmp_path, {"x": (2,), "y": (2,)}, torch.float16) as writer:
        assert writer.write("x", torch.tensor([1.0, 65504.0]))
        assert not writer.write("y", torch.tensor([1.0, 1e6]))


def test_a_tensor_of_another_size_is_refused(tmp_path):
    with (
        SafetensorsWriter(tmp_path, {"x": (2,)}, torch.float32) as writer,
        pytest.raises(CheckpointError, match="do not fit"),
    ):
        writer.write("x", torch.zeros(3))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"x": "../outside.safetensors"}}, "leads out of the folder"),
        ({"weight_map": {"x": "/etc/passwd"}}, "leads out of the folder"),
        ({"weight_map": {"x": "missing.safetensors"}}, "which is missing"),
        ({"weight_map": {"x": 3}}, "leads out of the folder|damaged"),
        ({"weight_map": ["x"]}, "damaged"),
        ([], "damaged"),
    ],
)
def test_a_bad_index_is_refused(index, message, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "outside.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        read_safetensors(folder)


def test_a_name_in_two_shards_is_refused(tmp_path):
    for file in ("a.safetensors", "b.safetensors"):
        save_file({"x": torch.zeros(1)}, tmp_path / file)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    with pytest.raises(CheckpointError, match="two files"):
        read_safetensors(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds neither"):
        read_safetensors(tmp_path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=5), cut=st.integers(0, 400))
def test_fuzzed_files_give_tensors_or_one_clear_error(edits, cut, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.arange(40.0), "y": torch.zeros(2, 3)}, path)
    data = bytearray(path.read_bytes())
    for place, value in edits:
        data[place] = value
    path.write_bytes(data[: len(data) - cut])
    try:
        arrays = read_safetensors(path)
        tensors = {name: array.load() for name, array in arrays.items()}
    except CheckpointError:
        return  # any other exception fails the test
    for name, tensor in tensors.items():
        assert tuple(tensor.shape) == arrays[name].shape
