"""Run a worker in one or several processes as torchrun would, all of them forks of one that has imported everything.

Importing torch, transformers and datasets takes seconds, and torchrun would have each process do it, and do it itself.
A fork begins as a fresh process does: nothing but imports has happened here.

Usage: python -m support.forks SCRIPT < JOBS, a JSON list of [processes, arguments]; they run one after the other.
"""

import json
import os
import runpy
import signal
import sys
from pathlib import Path

from torch.distributed import TCPStore

import modeling_siglip_ext.training  # noqa: F401 - before the forks


HOST = "127.0.0.1"


def start(script: str, arguments: list[str], rank: int, processes: int, port: int) -> int:
    """The number of the fork. Of several each finds its place in the environment, and the port in a pipe."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    if processes > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ |= {name: str(value) for name, value in place.items()}
        os.environ |= {"MASTER_ADDR": HOST, "MASTER_PORT": os.read(port, 100).decode()}
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the store is there: rank 0 makes none
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
    sys.exit()


def run(script: str, arguments: list[str], processes: int) -> None:
    """One that fails takes the others with it, and this process."""
    pipes = [os.pipe() for _ in range(processes)]
    children = {start(script, arguments, rank, processes, pipes[rank][0]) for rank in range(processes)}
    # made after the forks, as it is a thread; it finds a free port itself, so that none can be taken meanwhile
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    for reader, writer in pipes:
        os.write(writer, str(store.port).encode())
        os.close(reader)
        os.close(writer)
    while children:
        child, status = os.wait()
        children.discard(child)
        if code := os.waitstatus_to_exitcode(status):
            for other in children:
                os.kill(other, signal.SIGKILL)
            sys.exit(f"a process of {script} ended with status {code}")


if __name__ == "__main__":
    for processes, arguments in json.load(sys.stdin):
        run(sys.argv[1], arguments, processes)
