"""Scripts of the tests in processes of their own: workers that run to their end, and servers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


TESTS = Path(__file__).resolve().parents[1]
HUB_SERVER = TESTS / "support" / "hub_server.py"


def run_worker(script: Path, *arguments: object, processes: int = 1, timeout: float = 600, **environment: str) -> str:
    """What a script printed, which must end without an error, in each of several processes if it is to be several.

    It can import `support`, and its processes have a thread each.
    """
    return run_workers(script, (processes, arguments), timeout=timeout, **environment)


def run_workers(script: Path, *jobs: tuple[int, Iterable[object]], timeout: float = 600, **environment: str) -> str:
    """`run_worker` again and again, with other numbers of processes and other arguments, at the cost of one start."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-m", "support.forks", str(script)],
        input=json.dumps([(processes, list(map(str, arguments))) for processes, arguments in jobs]),
        cwd=TESTS,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


@contextmanager
def server(script: Path, *arguments: object) -> Iterator[str]:
    """The address of a server in a process of its own, which prints it first; killed in the end."""
    process = subprocess.Popen([sys.executable, str(script), *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            assert words, f"{script.name} did not start"
            yield words[-1]
        finally:
            process.kill()
