"""Checkpoints at URLs, through fsspec's own file systems: in memory, and on loopback HTTP, Cloud Storage and Hub."""

import logging
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import fsspec
import numpy as np
import pytest
from huggingface_hub import HfApi

from modeling_siglip_ext.conversion.__main__ import main
from modeling_siglip_ext.conversion.containers.remote import local, open_filesystem
from modeling_siglip_ext.conversion.errors import CheckpointError
from modeling_siglip_ext.conversion.formats import fetched
from support.processes import HUB_SERVER, server


FILE_SERVER = Path(__file__).with_name("file_server.py")
TIMEOUT = 300
NOBODY = "http://127.0.0.1:9"  # the port of a service that nobody runs


@pytest.fixture(scope="session")
def files(checkpoints, tmp_path_factory) -> Path:
    """A folder with `bucket/x.npz`, and a tensorstore folder behind its pointer."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "bucket").mkdir()
    shutil.copyfile(checkpoints / "siglip1_mu16" / "checkpoint.npz", folder / "bucket" / "x.npz")
    with tarfile.open(checkpoints / "siglip1_tensorstore" / "checkpoint.bv.tar.gz") as archive:
        archive.extractall(folder / "bucket", filter="data")
    return folder


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., str]]:
    """Starts a server of the files beside this one, in a process; gives its address."""
    with ExitStack() as stack:
        yield lambda script, *arguments: stack.enter_context(server(script, *arguments))


@pytest.fixture(scope="module")
def address(serve, files) -> str:
    return serve(FILE_SERVER, str(files))


@pytest.fixture
def cloud(address, monkeypatch) -> str:
    """Cloud Storage is where the file server is, and there are no credentials; gives the bucket's address."""
    gcsfs = pytest.importorskip("gcsfs")
    gcsfs.GCSFileSystem.clear_instance_cache()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    return "gs://bucket"


@pytest.fixture
def bucket(files) -> Iterator[str]:
    """The same in memory."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{files}/bucket/", "/bucket/", recursive=True)
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("name", ["x.npz", "checkpoint.bv"])
def test_a_url_is_fetched_and_converted(name, bucket, tmp_path):
    assert main(["from-jax", f"{bucket}/{name}", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert main(["verify", str(tmp_path / "out"), "--against", f"{bucket}/{name}"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_by_http(address, files, tmp_path):
    url = f"{address}/files/bucket/x.npz"
    assert main(["from-jax", url, str(tmp_path / "out")]) == 0
    assert main(["verify", str(tmp_path / "out"), "--against", str(files / "bucket" / "x.npz")]) == 0


def test_inspection_fetches_only_headers_where_the_server_gives_parts(address, tmp_path, files, capsys):
    """Behind a train state: a large array that belongs to nobody."""
    arrays = dict(np.load(files / "bucket" / "x.npz"))
    np.savez(files / "bucket" / "large.npz", **arrays, **{"opt/0": np.ones(10_000_000, np.float32)})

    def sent() -> int:
        return int(fsspec.filesystem("http").cat_file(f"{address}/sent"))

    before = sent()
    assert main(["inspect", f"{address}/files/bucket/large.npz"]) == 0
    assert "patch 16, 64 px" in (parts := capsys.readouterr().out)
    assert 10_000 < sent() - before < 10_000_000
    before = sent()
    assert main(["inspect", f"{address}/whole/bucket/large.npz"]) == 0
    assert capsys.readouterr().out == parts
    assert sent() - before > 40_000_000


@pytest.mark.slow
def test_by_https(serve, files, tmp_path):
    """The certificate is checked: one that nobody vouches for is refused."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the certificate is made with the openssl command, which is not here")
    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*command, "-keyout", str(key), "-out", str(public)], check=True, timeout=TIMEOUT)
    key.write_text(key.read_text() + public.read_text())
    url = f"{serve(FILE_SERVER, str(files), '--certificate', str(key))}/files/bucket/x.npz"
    convert = [sys.executable, "-m", "modeling_siglip_ext.conversion", "from-jax", url, str(tmp_path / "out")]
    done = subprocess.run(convert, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 2
    assert f"cannot fetch {url}" in done.stderr
    assert "certificate" in done.stderr
    trusting = {**os.environ, "SSL_CERT_FILE": str(public)}
    subprocess.run(convert, check=True, timeout=TIMEOUT, env=trusting)
    assert main(["verify", str(tmp_path / "out"), "--against", str(files / "bucket" / "x.npz")]) == 0


@pytest.mark.parametrize("name", ["x.npz", "checkpoint.bv"])
def test_from_cloud_storage(name, cloud, files, tmp_path):
    assert main(["from-jax", f"{cloud}/{name}", str(tmp_path / "out")]) == 0
    assert main(["verify", str(tmp_path / "out"), "--against", str(files / "bucket" / name)]) == 0


def test_from_the_hub(serve, files, tmp_path, monkeypatch):
    endpoint = serve(HUB_SERVER, str(tmp_path / "hub"))
    api = HfApi(endpoint=endpoint, token="hf_test")
    api.create_repo("user/jax")
    api.upload_file(path_or_fileobj=files / "bucket" / "x.npz", path_in_repo="x.npz", repo_id="user/jax")
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": endpoint, "token": "hf_test"})
    assert main(["from-jax", "hf://user/jax/x.npz", str(tmp_path / "out")]) == 0
    assert main(["verify", str(tmp_path / "out"), "--against", str(files / "bucket" / "x.npz")]) == 0
    assert main(["inspect", "hf://user/jax/none.npz"]) == 2


def test_of_an_open_clip_repository_only_what_is_read_is_fetched(bucket, tmp_path):
    memory = fsspec.filesystem("memory")
    for name in ("open_clip_model.safetensors", "open_clip_config.json", "open_clip_pytorch_model.bin"):
        memory.pipe(f"/bucket/repo/{name}", b"x")
    with fetched(f"{bucket}/repo", tmp_path) as folder:
        found = sorted(path.name for path in folder.iterdir())
    assert found == ["open_clip_config.json", "open_clip_model.safetensors"]


def test_a_missing_file_is_named(address, bucket, cloud, tmp_path, capsys):
    for place in (bucket, cloud, f"{address}/files"):
        assert main(["from-jax", f"{place}/none.npz", str(tmp_path / "out")]) == 2
        assert f"{place}/none.npz does not exist" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


def test_a_refusal_and_a_dead_line_are_named(address, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": NOBODY})
    for url in (f"{address}/denied/x.npz", f"{NOBODY}/x.npz", "hf://user/other/x.npz"):
        assert main(["from-jax", url, str(tmp_path / "out")]) == 2
        assert f"cannot fetch {url}: " in capsys.readouterr().err
        assert main(["inspect", url]) == 2
        assert f"cannot fetch {url}: " in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


def test_gcsfs_prints_no_traceback_of_what_it_raises(cloud):
    open_filesystem(f"{cloud}/x.npz", "gs")
    assert not logging.getLogger("gcsfs.retry").isEnabledFor(logging.ERROR)


def test_names_that_lead_out_of_the_target_are_refused(bucket, tmp_path, monkeypatch, capsys):
    """A bucket may hold objects of any name."""
    listed = ["/bucket/checkpoint.bv-000000004/../../../escaped"]
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", lambda *_: listed)
    assert main(["from-jax", f"{bucket}/checkpoint.bv", str(tmp_path / "a" / "b" / "out")]) == 2
    assert "escaped leads out of" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "library"), [("gs://bucket/y.npz", "gcsfs"), ("https://example.org/y.npz", "aiohttp")]
)
def test_a_missing_library_is_named_with_the_extra_that_has_it(url, library, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, library, None)  # an import of it fails
    for name in [name for name in sys.modules if name.startswith(("gcsfs.", "fsspec.implementations.http"))]:
        monkeypatch.delitem(sys.modules, name)
    known = sys.modules["fsspec.registry"]._registry
    for name in ("gs", "https"):
        monkeypatch.delitem(known, name, raising=False)
    assert main(["from-jax", url, str(tmp_path / "out")]) == 2
    assert "pip install 'siglip-ext[remote]'" in capsys.readouterr().err


def test_an_unknown_protocol_is_named():
    with pytest.raises(CheckpointError, match="nowhere"), local("nowhere://x/y.npz"):
        pass


def test_a_local_path_is_taken_as_it_is(tmp_path):
    with local(tmp_path / "x.npz") as path:
        assert path == tmp_path / "x.npz"
