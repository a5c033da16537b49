"""Converts in children that are killed, or that may not write much; prints what each left behind as JSON.

A process of its own, so that one import serves all children.

    python worker_interrupted.py CHECKPOINT FOLDER
"""

import json
import os
import resource
import sys
from pathlib import Path

import torch

from modeling_siglip_ext.conversion.__main__ import main
from support.killing import count_events


def start(checkpoint: str, out: Path, limit: int | None = None, last: int | None = None) -> int:
    """A child that converts, kills itself as it comes to its event number `last`, and says how many it came to."""
    child = os.fork()
    if child:
        return child
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    events = count_events(last)
    code = main(["from-jax", checkpoint, str(out)])
    (out.parent / f"{out.name}.events").write_text(str(events()))
    os._exit(code)


def killed(checkpoint: str, folder: Path, times: int = 20) -> list[dict]:
    os.waitpid(start(checkpoint, folder / "whole"), 0)
    events = int((folder / "whole.events").read_text())
    found = []
    for number in range(times):
        out = folder / f"out{number}"
        _, status = os.waitpid(start(checkpoint, out, last=1 + number * (events - 1) // (times - 1)), 0)
        drafts = len(list(folder.glob(f".{out.name}.*")))
        files = sorted(path.name for path in out.iterdir()) if out.exists() else None
        again = os.waitpid(start(checkpoint, out), 0)[1] if files is None else None
        left = len(list(folder.glob(f".{out.name}.*")))
        found.append({"status": status, "drafts": drafts, "files": files, "again": again, "left": left})
    whole = sorted(path.name for path in (folder / "whole").iterdir())
    return [{"files": whole}, *found]


def limited(checkpoint: str, folder: Path) -> dict:
    _, status = os.waitpid(start(checkpoint, folder / "out", limit=100_000), 0)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "files": [path.name for path in folder.iterdir() if path.suffix != ".events"],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    source, folders = sys.argv[1], [Path(sys.argv[2]) / name for name in ("limited", "killed")]
    for folder in folders:
        folder.mkdir()
    print(json.dumps({"limited": limited(source, folders[0]), "killed": killed(source, folders[1])}))
