"""tensorstore folders through their pointer, and damaged ones."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorstore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_siglip_ext.conversion.__main__ import main
from modeling_siglip_ext.conversion.containers.tensorstore_folder import newest_folder, read_tensorstore
from modeling_siglip_ext.conversion.errors import CheckpointError


@pytest.fixture
def unpacked(checkpoints, tmp_path) -> Path:
    with tarfile.open(checkpoints / "siglip1_tensorstore" / "checkpoint.bv.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "checkpoint.bv"


def test_a_checkpoint_through_its_pointer_gives_the_recorded_outputs(unpacked, checkpoints, tmp_path):
    out = str(tmp_path / "out")
    assert main(["from-jax", str(unpacked), out]) == 0
    io = str(checkpoints / "siglip1_tensorstore" / "io.npz")
    assert main(["verify", out, "--against", str(unpacked), "--io", io]) == 0
    assert main(["to-jax", out, str(tmp_path / "back.npz")]) == 0
    source = read_tensorstore(newest_folder(unpacked))
    back = np.load(tmp_path / "back.npz")
    assert set(back.files) == {name for name in source if name.startswith("params/")}
    for name in back.files:
        np.testing.assert_array_equal(back[name], source[name].load().numpy())


@pytest.mark.parametrize("content", ["{", "[]", '{"shape": 3}', '{"shape": [2], "dtype": "what"}', '{"shape": [-2]}'])
def test_damaged_metadata_is_named(content, unpacked, tmp_path, capsys):
    folder = newest_folder(unpacked) / "params~img~cls"
    folder.mkdir()
    (folder / ".zarray").write_text(content)
    assert main(["from-jax", str(unpacked), str(tmp_path / "out")]) == 2
    assert "params~img~cls/.zarray is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("step", "message"), [("000000009", "points to"), ("../../etc", "number of a step"), ("", "number of a step")]
)
def test_a_pointer_that_leads_nowhere_or_elsewhere_is_refused(step, message, unpacked):
    Path(f"{unpacked}-LAST").write_text(step)
    with pytest.raises(CheckpointError, match=message):
        newest_folder(unpacked)


def test_a_folder_that_claims_petabytes_is_refused(unpacked):
    """Missing chunks of a zarr array are filled with zeros: a few bytes can claim anything."""
    folder = newest_folder(unpacked)
    metadata = folder / "params~t" / ".zarray"
    content = json.loads(metadata.read_text())
    metadata.write_text(json.dumps({**content, "shape": [1 << 40]}))
    with pytest.raises(CheckpointError, match="no checkpoint shrinks like that"):
        read_tensorstore(folder)


def test_a_folder_without_arrays_is_no_checkpoint(tmp_path, capsys):
    assert main(["from-jax", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "no zarr arrays" in capsys.readouterr().err


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A folder of two arrays, compressed as big_vision's are."""
    folder = tmp_path_factory.mktemp("small")
    for name, array in {"params~t": np.ones(1, np.float32), "params~x": np.arange(12, dtype=np.float32)}.items():
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder / name)}}
        metadata = {"compressor": {"id": "zstd", "level": 1}, "shape": array.shape, "dtype": "<f4"}
        tensorstore.open({**spec, "metadata": metadata}, create=True).result().write(array).result()
    return folder


FILES = ("params~t/.zarray", "params~t/0", "params~x/.zarray", "params~x/0")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.sampled_from(FILES),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    cut=st.one_of(st.none(), st.floats(0, 1)),
)
def test_fuzzed_folders_give_arrays_or_one_clear_error(file, edits, cut, small, tmp_path):
    data = bytearray((small / file).read_bytes())
    for place, value in edits:
        data[int(place * len(data))] = value
    if cut is not None:
        data = data[: int(cut * len(data))]
    folder = tmp_path / "fuzzed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(small, folder)
    (folder / file).write_bytes(data)
    try:
        arrays = read_tensorstore(folder)
        tensors = {name: array.load() for name, array in arrays.items()}
    except CheckpointError:
        return  # any other exception fails the test
    for name, tensor in tensors.items():
        assert tuple(tensor.shape) == arrays[name].shape
