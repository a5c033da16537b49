"""The tests that need a GPU, run as a measurement: how many passed, and which did not."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from .setting import Bench, Figures, Item


REPOSITORY = Path(__file__).resolve().parents[2]


def run_tests(bench: Bench) -> Figures:
    # the rooms are found where they are installed, not in the repository
    environment = os.environ | {"PYTHONSAFEPATH": "1", "TEST_DEVICE": bench.device.type}
    several = ["-n", "4"] if find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "--durations=10", *several]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=environment)
    print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]]
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.MULTILINE)
    return {"summary": lines[-1].strip("= "), "failed": failed, "status": done.returncode}


def gpu_tests(bench: Bench) -> Iterator[Item]:
    yield Item("tests/gpu", partial(run_tests, bench))
