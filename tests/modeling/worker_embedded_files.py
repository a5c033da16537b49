"""Updates in children that are killed, each at another event; prints what was wrong with what they left as JSON.

A process of its own, so that one import serves all children.

    python worker_embedded_files.py FOLDER
"""

import json
import os
import shutil
import sys
from pathlib import Path

import torch
from torch import nn

from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.embedded_files import update
from support.embedded import encode, vector
from support.killing import count_events


FIRST = {"a": "one", "b": "two", "c": "three", "d": "bad", "e": "five +++", "f": "six"}
SECOND = {"b": "other", "c": "three", "d": "bad", "moved": "five +++", "f": "SIX", "g": "seven", "h": "eight"}
EITHER = {(name, content) for state in (FIRST, SECOND) for name, content in state.items()}


def put(root: Path, files: dict[str, str]) -> None:
    for path in root.iterdir():
        path.unlink()
    for number, (name, content) in enumerate(files.items()):
        (root / name).write_text(content)
        os.utime(root / name, (number, sum(content.encode())))


def bring(out: Path, root: Path) -> None:
    names = sorted(path.name for path in root.iterdir())
    update(out, {}, root, names, lambda some: encode(root, some, []), nn.Linear(1, 1), part_files=2)


def child(out: Path, root: Path, last: int) -> int:
    """Updates, and kills itself as it comes to its event number `last`; its status."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    count_events(last)
    bring(out, root)
    os._exit(0)


def faults(out: Path, expected: set[tuple[str, str]], complete: bool) -> list[str]:
    """What is wrong with a folder: its rows must be of these files, each file's once."""
    try:
        embeds, _, names = store.read(out)
    except FileNotFoundError as error:  # none yet
        return [str(error)] if complete else []
    wrong = []
    by_name = {name: [row for row, other in enumerate(names) if other == name] for name in names}
    for name, rows in by_name.items():
        contents = [content for other, content in expected if other == name]
        fits = [
            content
            for content in contents
            if len(rows) == max(1, content.count("+"))
            and (
                embeds[rows].isnan().all()
                if content == "bad"
                else torch.equal(embeds[rows[0]], torch.from_numpy(vector(content.encode())))
            )
        ]
        if not fits:
            wrong.append(f"{name}: {rows}")
    if complete and set(by_name) != {name for name, _ in expected}:
        wrong.append(f"complete, with {sorted(map(str, by_name))}")
    return wrong


def main(folder: Path) -> dict:
    root, before = folder / "files", folder / "before"
    root.mkdir()
    put(root, FIRST)
    bring(before, root)
    put(root, SECOND)
    found = {"killed": 0, "partly": 0, "wrong": []}
    while True:
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(before, out)
        if child(out, root, found["killed"] + 1) == 0:
            return found
        found["killed"] += 1
        found["partly"] += (out / store.PLAN).exists()
        found["wrong"] += faults(out, EITHER, complete=False)
        bring(out, root)
        found["wrong"] += faults(out, set(SECOND.items()), complete=True)
        found["wrong"] += [path.name for path in out.iterdir() if path.name[0] == "." or path.name == store.PLAN]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(Path(sys.argv[1]))))
