"""The `.npz` reader against numpy, and against files that mean harm or are damaged."""

import io
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modeling_siglip_ext.conversion.containers.npz import NpzWriter, read_npz
from modeling_siglip_ext.conversion.errors import CheckpointError


ARRAYS = {
    "params/img/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "params/half": np.array([1.5, -2], np.float16),
    "params/double": np.array([[0.1]], np.float64),
    "params/scalar": np.float32(3),
    "params/empty": np.zeros((0, 4), np.float32),
    "params/fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "params/big-endian": np.array([1, 2], ">f4"),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes(save, tmp_path):
    save(tmp_path / "x.npz", **ARRAYS)
    arrays = read_npz(tmp_path / "x.npz")
    assert list(arrays) == list(ARRAYS)
    for name, expected in ARRAYS.items():
        tensor = arrays[name].load()
        assert arrays[name].shape == expected.shape == tuple(tensor.shape)
        assert tensor.dtype == arrays[name].dtype
        np.testing.assert_array_equal(tensor.numpy(), expected)


def test_bfloat16_is_read_exactly(tmp_path):
    raw = np.array([0x3F80, 0xC020, 0x7F80], dtype=np.uint16).view("V2")
    np.savez(tmp_path / "x.npz", x=raw)
    tensor = read_npz(tmp_path / "x.npz")["x"].load()
    assert tensor.dtype == torch.bfloat16
    assert tensor.tolist() == [1.0, -2.5, float("inf")]


def test_numpy_reads_what_the_writer_writes():
    file = io.BytesIO()
    whole = torch.randn(4, 6)
    with NpzWriter(file) as writer:
        writer.write("a/b", (4, 6), torch.float32, iter(whole.split(1)))
        writer.write("c", (6,), torch.bfloat16, [whole[0]])
        writer.write("d", (), torch.float16, [torch.tensor(2.0)])
        writer.write("e", (0, 3), torch.float32, [torch.zeros(0, 3)])
    file.seek(0)
    arrays = np.load(file)
    np.testing.assert_array_equal(arrays["a/b"], whole.numpy())
    expected = whole[0].bfloat16().view(torch.int16).numpy()
    np.testing.assert_array_equal(arrays["c"].view(np.int16), expected)
    assert arrays["d"].dtype == np.float16
    assert arrays["d"].shape == ()
    assert arrays["e"].shape == (0, 3)


def member(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def archive(path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


FLOATS = b"{'descr': '<f4', 'fortran_order': False, 'shape': %s}"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.npy": member(FLOATS % b"(4,)", b"\0" * 8)}, "do not fit"),
        ({"x.npy": member(FLOATS % b"(-1,)", b"")}, "claims the shape"),
        ({"x.npy": member(FLOATS % b"(1,)", b"\0" * 9)}, "do not fit"),
        ({"x.npy": b"no array at all"}, "not a sound .npz"),
        ({"x.npy": member(b"__import__('os').abort()")}, "not a sound .npz"),
        ({"x.npy": member(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"\x80\x04N.")}, "pickled"),
        ({"../../x.npy": member(FLOATS % b"(1,)", b"\0" * 4)}, "leads out of the archive"),
        ({"/etc/x.npy": member(FLOATS % b"(1,)", b"\0" * 4)}, "leads out of the archive"),
        ({"readme.txt": b"hello"}, "is no array"),
        ({}, "holds no arrays"),
    ],
)
def test_harmful_members_are_refused(members, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        read_npz(archive(tmp_path / "x.npz", members))


def test_two_members_of_one_name_are_refused(tmp_path):
    data = member(FLOATS % b"(1,)", b"\0" * 4)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("x.npy", data)
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("x.npy", data)
    with pytest.raises(CheckpointError, match="twice"):
        read_npz(tmp_path / "x.npz")


def test_an_archive_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """1.2 GB of zeros in a few MB; only its header is ever unpacked."""
    size = 300 << 20
    file = zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with file, file.open("x.npy", "w") as stream:
        stream.write(member(FLOATS % f"({size},)".encode()))
        block = bytes(1 << 24)
        for _ in range(size * 4 // len(block)):
            stream.write(block)
    with pytest.raises(CheckpointError, match="no checkpoint shrinks like that"):
        read_npz(tmp_path / "x.npz")


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    """Zeros that unpack to less than what is never held against a file, claimed as one array's header."""
    zeros = bytes(1 << 26)
    member = b"\x93NUMPY\x02\x00" + struct.pack("<I", len(zeros)) + zeros
    path = archive(tmp_path / "x.npz", {"x.npy": member}, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="not a sound"):
            read_npz(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 23
    finally:
        tracemalloc.stop()


def test_a_truncated_archive_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", **ARRAYS)
    data = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(data[: len(data) // 2])  # as of a download that broke off
    with pytest.raises(CheckpointError, match=r"not a sound \.npz file: File is not a zip file"):
        read_npz(tmp_path / "x.npz")


def test_a_changed_byte_is_noticed(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.ones(1000, np.float32))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(CheckpointError, match="CRC"):
        read_npz(tmp_path / "x.npz")["x"].load()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x93NUMPY\x01\x00"])
def test_a_foreign_file_is_refused(content, tmp_path):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a sound"):
        read_npz(tmp_path / "x.npz")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_npz(tmp_path / "none.npz")


def small_file(compressed: bool) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **{k: v for k, v in ARRAYS.items() if v.size})
    return file.getvalue()


FILES = {compressed: small_file(compressed) for compressed in (False, True)}


def from_the_end(place: int, compressed: bool = False) -> float:
    """As `edits` say it: the share of the file in front of a byte."""
    size = len(FILES[compressed])
    return (size - place + 0.5) / size


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    compressed=st.booleans(),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    cut=st.one_of(st.none(), st.floats(0, 1)),
)
@example(compressed=False, edits=[(from_the_end(5), 255)], cut=None)  # the directory is said to lie elsewhere, so that
@example(compressed=True, edits=[(from_the_end(5, compressed=True), 255)], cut=None)  # the system refuses to seek
def test_fuzzed_files_give_arrays_or_one_clear_error(compressed, edits, cut, tmp_path):
    data = bytearray(FILES[compressed])
    for place, value in edits:
        data[int(place * len(data))] = value
    if cut is not None:
        data = data[: int(cut * len(data))]
    path = tmp_path / "fuzzed.npz"
    path.write_bytes(data)
    try:
        arrays = read_npz(path)
        tensors = {name: array.load() for name, array in arrays.items()}
    except CheckpointError:
        return  # any other exception fails the test
    for name, tensor in tensors.items():
        assert tuple(tensor.shape) == arrays[name].shape
        # whatever was read passed the archive's own sum over its bytes
    with zipfile.ZipFile(path) as file:
        for info in file.infolist():
            assert zlib.crc32(file.read(info)) == info.CRC
