"""A folder appears complete or not at all: after an error, after SIGKILL, on a full disk."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_siglip_ext.conversion.__main__ import main
from modeling_siglip_ext.files import new_file, new_folder
from support.processes import TESTS


WORKER = Path(__file__).with_name("worker_interrupted.py")
TWICE = Path(__file__).with_name("worker_targets.py")
TIMEOUT = 300


def fail_after_writing(path: Path) -> None:
    path.write_text("x")
    raise RuntimeError("stop")


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), new_folder(tmp_path / "out") as folder:
        fail_after_writing(folder / "half")
    with pytest.raises(RuntimeError, match="stop"), new_file(tmp_path / "file") as path:
        fail_after_writing(path)
    assert list(tmp_path.iterdir()) == []


def test_success_shows_everything_at_once(tmp_path):
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "a").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert (tmp_path / "deep" / "out").stat().st_mode & 0o777 == 0o755
    with new_file(tmp_path / "file") as path:
        path.write_text("y")
    assert (tmp_path / "file").read_text() == "y"


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="exists"), new_folder(tmp_path / "out"):
        raise AssertionError("must not get here")


def test_a_running_neighbour_keeps_its_draft(tmp_path):
    with new_folder(tmp_path / "out") as first:
        (first / "a").write_text("first")
        with pytest.raises(RuntimeError), new_folder(tmp_path / "out"):
            raise RuntimeError("the second run fails")
        assert (first / "a").exists()
    assert (tmp_path / "out" / "a").read_text() == "first"


@pytest.fixture(scope="module")
def interrupted(checkpoints, tmp_path_factory) -> tuple[dict, str]:
    """What interrupted conversions left behind, and what they said."""
    source = checkpoints / "siglip1_mu16" / "checkpoint.npz"
    command = [sys.executable, str(WORKER), str(source), str(tmp_path_factory.mktemp("interrupted"))]
    paths = os.environ | {"PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, env=paths, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.long
def test_killed_at_twenty_moments_the_folder_is_absent_or_complete(interrupted):
    whole, *killed = interrupted[0]["killed"]
    assert len(killed) == 20
    assert [one["status"] for one in killed] == [9] * 20
    assert sum(one["drafts"] > 0 for one in killed) >= 5  # in the middle of writing
    assert killed[0]["drafts"] == 0
    for one in killed:
        assert one["files"] in (None, whole["files"])
        assert one["again"] in (None, 0)
        if one["files"] is None:
            assert one["left"] == 0  # the next run tidies up


@pytest.mark.long
def test_a_file_size_limit_is_reported_and_leaves_nothing(interrupted):
    found, errors = interrupted
    assert found["limited"] == {"status": 2, "files": []}
    assert "the file is too large" in errors


def test_what_can_never_fit_is_told_by_its_largest_tensor(checkpoints, tmp_path, capsys):
    source = checkpoints / "siglip1_mu16" / "checkpoint.npz"
    assert main(["from-jax", str(source), str(tmp_path / "out"), "--image_size", "100000000"]) == 2
    said = capsys.readouterr().err
    assert "the disk is full: the tensors take " in said
    assert "the largest is vision_model.embeddings.position_embedding.weight (39062500000000, 32)" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_full_disk_and_one_that_cannot_be_written_are_reported_and_left_empty(checkpoints, tmp_path):
    """File systems of 200 kB and without the right to write, where the machine lets a test mount some."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare")
    full, locked = tmp_path / "full", tmp_path / "locked"
    full.mkdir()
    locked.mkdir()
    mount = f"mount -t tmpfs -o size=200k none {full} && mount -t tmpfs -o ro none {locked}"
    enter = [unshare, "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*enter, mount], capture_output=True, timeout=TIMEOUT).returncode:
        pytest.skip("needs user namespaces")
    source = checkpoints / "siglip1_mu16" / "checkpoint.npz"
    convert = f"{sys.executable} {TWICE} {source} {full}/out {locked}/out"
    script = f"{mount} && {{ {convert}; ls -A {full} {locked}; }}"
    done = subprocess.run([*enter, script], capture_output=True, text=True, timeout=TIMEOUT, check=True)
    assert done.stdout.split() == ["2", "2", f"{full}:", f"{locked}:"]
    assert "the disk is full" in done.stderr
    assert f"cannot write in {locked}: Read-only file system" in done.stderr
