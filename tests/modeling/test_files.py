"""Files and folders appear whole or not at all."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from modeling_siglip_ext import files
from modeling_siglip_ext.files import (
    DRAFT,
    new_file,
    new_folder,
    put_in_place,
    read_json,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_after_writing(path: Path) -> None:
    path.write_text("half")
    raise KeyError


def test_a_file_appears_when_its_block_ends(tmp_path):
    target = tmp_path / "deep" / "a.bin"
    with new_file(target) as draft:
        draft.write_bytes(b"new")
        assert not target.exists()
        assert draft.name == target.name, "some writers go by the suffix"
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["a.bin"]


def test_an_older_file_is_replaced_on_demand_and_refused_otherwise(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(FileExistsError, match=r"a\.txt exists"), new_file(target):
        raise AssertionError("nothing may be written")
    with new_file(target, replace=True) as draft:
        draft.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_an_error_leaves_the_older_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(KeyError), new_file(target, replace=True) as draft:
        fail_after_writing(draft)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_appears_when_its_block_ends(tmp_path):
    target = tmp_path / "model"
    with new_folder(target) as draft:
        (draft / "inside").mkdir()
        (draft / "inside" / "a.txt").write_text("new")
        assert not target.exists()
    assert (target / "inside" / "a.txt").read_text() == "new"
    assert os.stat(target).st_mode & 0o777 == 0o755, "others may read it"
    assert names(tmp_path) == ["model"]
    with pytest.raises(FileExistsError, match="model exists"), new_folder(target):
        raise AssertionError("nothing may be written")


def test_an_error_leaves_no_folder(tmp_path):
    with pytest.raises(KeyError), new_folder(tmp_path / "model") as draft:
        fail_after_writing(draft / "a.txt")
    assert names(tmp_path) == []


def test_a_folder_takes_the_place_of_an_older_one(tmp_path):
    out, folder = tmp_path / "out", tmp_path / "fresh"
    for path, text in ((out, "old"), (folder, "new")):
        path.mkdir()
        (path / f"{text}.txt").write_text(text)
    put_in_place(folder, out)
    assert names(tmp_path) == ["out"]
    assert names(out) == ["new.txt"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write in .*file"), new_file(tmp_path / "file" / "a.txt"):
        raise AssertionError("nothing may be written")


# imported by its file name: the package would bring torch, and seconds
WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from files import new_file
with new_file(sys.argv[2], replace=True) as draft:
    draft.write_text("half")
    print("started", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("name", ["a.txt", "a[1].txt"])
def test_the_draft_of_a_killed_process_is_tidied_and_that_of_a_living_one_is_not(tmp_path, name):
    target = tmp_path / name
    command = [sys.executable, "-c", WRITER, str(Path(files.__file__).parent), str(target)]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        assert [writer.stdout.readline() for writer in writers] == [b"started\n"] * 2
        writers[0].kill()
        writers[0].wait()
        assert len(list(tmp_path.glob(f".*{DRAFT}"))) == 2
        write_text(target, "whole")
        assert target.read_text() == "whole"
        assert len(list(tmp_path.glob(f".*{DRAFT}"))) == 1
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    write_text(target, "again")
    assert names(tmp_path) == [name]


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    target, failed = tmp_path / "a.json", []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                write_json(target, {"number": number, "filler": "x" * 1000})
                assert read_json(target, "")["filler"] == "x" * 1000
        except (OSError, ValueError, AssertionError) as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert names(tmp_path) == ["a.json"]


def test_json_and_text_are_utf_8_and_end_with_a_newline(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Grüße", "list": [1, None]})
    raw = (tmp_path / "a.json").read_bytes()
    assert "Grüße".encode() in raw
    assert raw.endswith(b"}\n")
    assert read_json(tmp_path / "a.json", "") == {"name": "Grüße", "list": [1, None]}
    write_json(tmp_path / "a.json", [1])
    assert json.loads((tmp_path / "a.json").read_text()) == [1]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, r"a\.json is missing: make it anew"),
        (b"", ValueError, r"a\.json is damaged \(.*\): make it anew"),
        (b'{"a": 1', ValueError, r"a\.json is damaged \(.*\): make it anew"),
        (b"\xff\xfe{}", ValueError, r"a\.json is damaged \(.*\): make it anew"),
        (b"[1]", ValueError, r"a\.json is damaged \(no mapping\): make it anew"),
    ],
)
def test_json_that_cannot_be_read_comes_with_the_remedy(tmp_path, content, error, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        read_json(path, "make it anew")


def test_a_folder_that_came_into_being_meanwhile_is_kept(tmp_path):
    def two_at_once(draft: Path) -> None:
        for folder, name in ((draft, "a"), (tmp_path / "out", "b")):
            folder.mkdir(exist_ok=True)
            (folder / name).write_text(name)

    with pytest.raises(FileExistsError, match="exists by now"), files.new_folder(tmp_path / "out") as draft:
        two_at_once(draft)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


def test_where_there_are_no_locks_files_are_written_and_drafts_of_others_left(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    (tmp_path / f".file.other{files.DRAFT}").mkdir()
    files.write_text(tmp_path / "file", "x")
    assert (tmp_path / "file").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".file.other{files.DRAFT}", "file"]


def test_a_folder_that_cannot_take_its_place_leaves_the_older_one(tmp_path, monkeypatch):
    for name in ("draft", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    rename = Path.rename
    fails = OSError(errno.EIO, "Input/output error")

    def break_once(self, target):
        if self.name == "draft":
            raise fails
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", break_once)
    with pytest.raises(OSError, match="Input/output"):
        put_in_place(tmp_path / "draft", tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "out"
