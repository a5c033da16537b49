"""Checkpoints at URLs, through fsspec's own file systems."""

import tarfile

import fsspec
import pytest

from modeling_siglip_ext.conversion.__main__ import main
from modeling_siglip_ext.conversion.errors import CheckpointError
from modeling_siglip_ext.conversion.remote import local


@pytest.fixture
def bucket(checkpoints, tmp_path):
    """An in-memory bucket with an `.npz` and a tensorstore folder behind its pointer."""
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/x.npz", (checkpoints / "siglip1_mu16" / "checkpoint.npz").read_bytes())
    with tarfile.open(checkpoints / "siglip1_tensorstore" / "checkpoint.bv.tar.gz") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    memory.put(str(tmp_path / "unpacked") + "/", "/bucket/", recursive=True)
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("name", ["x.npz", "checkpoint.bv"])
def test_a_url_is_fetched_and_converted(name, bucket, tmp_path):
    assert main(["from-jax", f"{bucket}/{name}", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert main(["verify", str(tmp_path / "out"), "--against", f"{bucket}/{name}"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "unpacked"]


def test_of_an_open_clip_repository_only_what_is_read_is_fetched(bucket, tmp_path):
    memory = fsspec.filesystem("memory")
    for name in ("open_clip_model.safetensors", "open_clip_config.json", "open_clip_pytorch_model.bin"):
        memory.pipe(f"/bucket/repo/{name}", b"x")
    with local(f"{bucket}/repo", tmp_path) as folder:
        found = sorted(path.name for path in folder.iterdir())
    assert found == ["open_clip_config.json", "open_clip_model.safetensors"]


def test_a_missing_file_is_named(bucket, tmp_path, capsys):
    assert main(["from-jax", f"{bucket}/none.npz", str(tmp_path / "out")]) == 2
    assert "none.npz" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_protocol_is_named():
    with pytest.raises(CheckpointError, match="nowhere"), local("nowhere://x/y.npz"):
        pass


def test_a_local_path_is_taken_as_it_is(tmp_path):
    with local(tmp_path / "x.npz") as path:
        assert path == tmp_path / "x.npz"
