"""Embeddings of files: after any changes, and killed at any moment, they are those of the files that are there."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.embedded_files import Changes, update
from modeling_siglip_ext.embedding_blocks import open_blocks
from support.embedded import encode, vector
from support.processes import run_worker


WORKER = Path(__file__).with_name("worker_embedded_files.py")
OPENED: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def count_opens() -> None:
    """What Python asks the system to open, in `OPENED`; an audit hook stays for good."""
    sys.addaudithook(lambda event, words: OPENED.append(str(words[0])) if event == "open" else None)


def bring(out: Path, root: Path, **options) -> tuple[Changes, list[str]]:
    """Update `out`; what changed, and the files that were embedded."""
    asked: list[str] = []
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    settings = {"weights": "abc", **options.pop("settings", {})}
    options = {"part_files": 3, **options}
    found = update(out, settings, root, names, lambda some: encode(root, some, asked), nn.Linear(1, 1), **options)
    return found, asked


def check(out: Path, root: Path) -> None:
    """Every file that is there has its rows once, and no other has any."""
    embeds, errors, names = store.read(out)
    stored = open_blocks(out)
    assert (stored.errors, stored.names) == (errors, names)
    torch.testing.assert_close(torch.cat([block for _, block in stored.blocks(size=2)]), embeds, equal_nan=True)
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert sorted(set(map(str, names))) == sorted(files)
    for name, content in files.items():
        rows = [row for row, other in enumerate(names) if other == name]
        assert len(rows) == max(1, content.count(b"+")), name
        assert [row in errors for row in rows] == [content == b"bad"] * len(rows), name
        if content != b"bad":
            np.testing.assert_array_equal(embeds[rows[0]], vector(content))
    assert not (out / store.PLAN).exists()


def set_files(root: Path, **contents: str | None) -> None:
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.unlink()
        else:
            path.write_text(content)


@pytest.mark.parametrize("form", ["parquet", "safetensors"])
def test_new_changed_moved_and_deleted_files(form, tmp_path):
    out, root = tmp_path / "out", tmp_path / "files"
    set_files(root, a="one", b="two", c="bad", d="three ++", e="five", f="six", g="seven")
    found, asked = bring(out, root, form=form)
    assert (found, asked) == (Changes(7, 0, 0, 0, 0), list("abcdefg"))
    check(out, root)
    set_files(root, a=None, b="TWO", h="eight", i="nine")
    os.rename(root / "d", root / "z")
    os.utime(root / "e")
    found, asked = bring(out, root, form=form)
    assert (found, asked) == (Changes(2, 1, 1, 1, 4), ["b", "h", "i"])
    check(out, root)
    assert len(list(out.glob("part-*"))) == 3, "parts with room are filled first"
    (root / "c").chmod(0o600)  # still broken, and known to be
    OPENED.clear()
    before = {path: path.stat().st_ino for path in out.glob("part-*")}
    found, asked = bring(out, root, form=form)
    assert (found, asked) == (Changes(0, 0, 0, 0, 8), [])
    assert not [path for path in OPENED if path.startswith(str(root))]
    assert before == {path: path.stat().st_ino for path in out.glob("part-*")}
    check(out, root)


def test_a_change_that_size_and_time_do_not_show_is_found_on_demand(tmp_path):
    out, root = tmp_path / "out", tmp_path / "files"
    set_files(root, a="one", b="two")
    bring(out, root)
    about = (root / "a").stat()
    set_files(root, a="ONE")
    os.utime(root / "a", ns=(about.st_atime_ns, about.st_mtime_ns))
    assert bring(out, root)[1] == []
    assert bring(out, root, check_contents=True) == (Changes(0, 1, 0, 0, 1), ["a"])
    check(out, root)


def test_what_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    out, root = tmp_path / "out", tmp_path / "files"
    set_files(root, a="one", b="two")
    monkeypatch.setattr("support.embedded.UNREADABLE", {"b"})
    bring(out, root)
    assert store.read(out)[1] == {1: "cannot be read"}
    monkeypatch.undo()
    assert bring(out, root) == (Changes(0, 1, 0, 0, 1), ["b"])
    check(out, root)


def test_other_settings_and_another_folder_are_refused_and_nothing_is_touched(tmp_path):
    out, root, other = tmp_path / "out", tmp_path / "files", tmp_path / "other"
    set_files(root, a="one", b="two")
    set_files(other, x="ten", y="eleven")
    bring(out, root)
    with pytest.raises(ValueError, match=r"other weights \(there abc, now xyz\): choose another folder"):
        bring(out, root, settings={"weights": "xyz"})
    with pytest.raises(ValueError, match=r"holds embeddings of files that are not in .*other: choose another folder"):
        bring(out, other)
    with pytest.raises(ValueError, match=r"other .*rows \(there None, now 23\)"):
        store.compute(out, {"weights": "abc"}, 23, lambda *_: iter(()), nn.Linear(1, 1))
    check(out, root)
    os.rename(root, tmp_path / "moved")
    assert bring(out, tmp_path / "moved")[0] == Changes(0, 0, 0, 0, 2)


def test_processes_share_the_parts(tmp_path, monkeypatch):
    out, root = tmp_path / "out", tmp_path / "files"
    set_files(root, **{f"file{i}": f"content {i}" for i in range(9)})
    monkeypatch.setattr(store, "wait_for_all", lambda: None)
    monkeypatch.setattr(Path, "unlink", lambda _: None)  # the plan, which the others need
    monkeypatch.setenv("WORLD_SIZE", "2")
    shared = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        shared.append(bring(out, root)[1])
    assert shared == [["file0", "file1", "file2", "file6", "file7", "file8"], ["file3", "file4", "file5"]]
    monkeypatch.undo()
    assert bring(out, root)[0] == Changes(0, 0, 0, 0, 9)
    check(out, root)


CONTENTS = st.sampled_from(["one", "two", "bad", "six ++", "seven"])
STATES = st.dictionaries(st.sampled_from("abcdefgh"), CONTENTS, min_size=1)


@given(st.lists(STATES, min_size=2, max_size=4), st.sampled_from([1, 2, 5]))
@settings(max_examples=12, deadline=None)
def test_any_changes(tmp_path_factory, states, part_files):
    folder = tmp_path_factory.mktemp("any")
    out, root = folder / "out", folder / "files"
    for state in states:
        there = {path.name for path in root.iterdir()} if root.exists() else set()
        if there and not there & state.keys():
            continue  # another folder's files, as far as anybody can tell
        set_files(root, **{**dict.fromkeys(there, None), **state})
        for path in root.iterdir():  # a second apart, as by hand
            os.utime(path, (0, hash(path.read_text()) % 997 + 997 * ord(path.name)))
        bring(out, root, part_files=part_files)
        check(out, root)


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_what_can_be_read_and_goes_on(tmp_path):
    found = json.loads(run_worker(WORKER, tmp_path))
    assert found["killed"] > 50
    assert found["wrong"] == []
    assert found["partly"] > 10, "some were killed between parts"


def test_a_stopped_run_is_told_to_whoever_reads(tmp_path, caplog):
    out, root = tmp_path / "out", tmp_path / "files"
    set_files(root, **{f"file{i}": f"content {i}" for i in range(5)})

    def stop(names: list[str]) -> Iterator:
        if "file3" in names:
            raise KeyboardInterrupt
        return encode(root, names, [])

    names = sorted(path.name for path in root.iterdir())
    with pytest.raises(KeyboardInterrupt):
        update(out, {}, root, names, stop, nn.Linear(1, 1), part_files=3)
    assert store.read(out, missing="run it again")[2] == ["file0", "file1", "file2"]
    assert "lacks embeddings of files that are new or other by now: run it again" in caplog.text
