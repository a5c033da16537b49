"""A file that is not what it claims to be is told apart from a disk that cannot be read."""

import errno
import io
import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from modeling_siglip_ext.conversion.__main__ import main
from modeling_siglip_ext.conversion.containers.damage import read_mapping, reading
from modeling_siglip_ext.conversion.containers.npz import read_npz
from modeling_siglip_ext.conversion.containers.safetensors_files import INDEX, read_safetensors
from modeling_siglip_ext.conversion.containers.tensorstore_folder import read_tensorstore
from modeling_siglip_ext.conversion.errors import CheckpointError


def npz(path: Path) -> bytearray:
    np.savez(path, **{"params/img/embedding/kernel": np.zeros((4, 4, 3, 8), np.float32), "params/t": np.zeros(1)})
    return bytearray(path.read_bytes())


@pytest.mark.parametrize("shift", [500, -500, 1 << 30])
def test_a_directory_that_is_said_to_lie_elsewhere(shift, tmp_path, capsys):
    """The operating system refuses to seek in front of the file's first byte."""
    path = tmp_path / "x.npz"
    data = npz(path)
    end = data.rfind(b"PK\5\6")
    (offset,) = struct.unpack_from("<I", data, end + 16)
    struct.pack_into("<I", data, end + 16, max(0, offset + shift))
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.npz is not a sound \.npz file"):
        read_npz(path)
    for command in (["inspect", str(path)], ["from-jax", str(path), str(tmp_path / "out")]):
        assert main(command) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("siglip-ext-convert: error: ")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_of_other_compressions_that_are_damaged(method, tmp_path):
    path = tmp_path / "x.npz"
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 64)
    header += b"{'descr': '<f4', 'fortran_order': False, 'shape': (4000,), }".ljust(63) + b"\n"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x.npy", header + np.random.default_rng(0).bytes(16000))
    data = bytearray(path.read_bytes())
    for place in range(200, len(data) - 400, 97):
        changed = bytearray(data)
        changed[place : place + 8] = b"\xff" * 8
        path.write_bytes(changed)
        with pytest.raises(CheckpointError):
            read_npz(path)["x"].load()


def test_an_encrypted_member_and_an_unknown_compression(tmp_path):
    path = tmp_path / "x.npz"
    data = npz(path)
    place = data.rfind(b"PK\1\2")
    for offset, value in ((8, 1), (10, 99)):  # flags, method
        changed = bytearray(data)
        changed[place + offset] = value
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="not a sound"):
            read_npz(path)


@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'shape': (1",  # no closing bracket: what numpy falls back on is Python's tokenizer
        b"(" * 5000,
        b"{'descr': ('<f4', '''",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1L,), '\xff': 1}",
        b"{'descr': '|V0', 'fortran_order': False, 'shape': (3,)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (10**999999,)}",
    ],
)
def test_headers_that_numpy_stumbles_over(header, tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(CheckpointError):
        read_npz(path)["x"].load()


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a": 1', b"\xff\xfe", b"[]", b'{"a": "\xff"}', b"", b"9" * 5000]
)
def test_json_that_is_none(content, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.json is damaged"):
        read_mapping(tmp_path / "x.json")


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"\xff",
        b'{"shape": [1e400], "dtype": "<f4"}',
        b'{"shape": [1], "dtype": "V99999999999999999999"}',
        b'{"shape": [' + b"9" * 5000 + b'], "dtype": "<f4"}',
    ],
)
def test_metadata_of_a_tensorstore_folder(content, tmp_path):
    (tmp_path / "params~t").mkdir()
    (tmp_path / "params~t" / ".zarray").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"params~t/\.zarray is damaged"):
        read_tensorstore(tmp_path)


@pytest.mark.parametrize("header", [b"[" * 100_000, b"{}" * 4, b"\xff" * 64, b'{"x": {"dtype": "F32"}}'])
def test_headers_of_safetensors(header, tmp_path):
    path = tmp_path / "x.safetensors"
    for length in (len(header), 1 << 60, 0):
        path.write_bytes(struct.pack("<Q", length) + header)
        with pytest.raises(CheckpointError, match=r"x\.safetensors"):
            read_safetensors(path)["x"].load()


def test_an_index_without_end(tmp_path):
    (tmp_path / INDEX).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_safetensors(tmp_path)


class Sick(io.BytesIO):
    """A file on a disk that gives up after a while."""

    def __init__(self, data: bytes, number: int, reads: int):
        super().__init__(data)
        self.number, self.left = number, reads

    def read(self, *size: int) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise OSError(self.number, os.strerror(self.number))
        return super().read(*size)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.ENOMEM, errno.ETIMEDOUT])
@pytest.mark.parametrize("reads", [0, 1, 3, 6])
def test_a_disk_error_of_an_archive_stays_one(number, reads, tmp_path):
    data = bytes(npz(tmp_path / "x.npz"))
    with pytest.raises(OSError, match=r"cannot read .*x\.npz.*") as raised:
        read_npz(tmp_path / "x.npz", Sick(data, number, reads))["params/t"].load()
    assert raised.value.errno == number
    assert not isinstance(raised.value, CheckpointError)


def test_a_disk_error_is_shown_as_one(tmp_path, monkeypatch, capsys):
    """The file is sound, its disk is not: nothing is said of damage."""
    path = tmp_path / "config.json"
    path.write_text("{}")

    sound = Path.read_text

    def give_up(self: Path, *arguments, **options) -> str:
        if self == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return sound(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", give_up)
    assert main(["inspect", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"cannot read {path}: Input/output error" in said
    assert "damaged" not in said


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
def test_what_tensorstore_and_safetensors_say_of_the_operating_system(tmp_path):
    """Neither raises an OSError with a number; both name it in words."""
    folder = tmp_path / "params~t"
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder)}}
    metadata = {"shape": [3], "dtype": "<f4", "compressor": None}
    tensorstore.open({**spec, "metadata": metadata}, create=True).result().write(np.ones(3, np.float32)).result()
    (folder / "0").unlink()
    (folder / "0").symlink_to(folder / "0")
    with pytest.raises(OSError, match="cannot read") as raised:
        read_tensorstore(tmp_path)["params/t"].load()
    assert raised.value.errno == errno.ELOOP
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(OSError, match="cannot read here"), reading("here"):
        safe_open(tmp_path / "x.safetensors", framework="pt")


def test_a_sound_file_passes(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert read_safetensors(tmp_path / "x.safetensors")["x"].load().tolist() == [0, 0]
    (tmp_path / "x.json").write_text(json.dumps({"a": 1}))
    assert read_mapping(tmp_path / "x.json") == {"a": 1}
