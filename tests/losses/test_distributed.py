"""The losses over several processes. One launch serves all of it: starting processes is what takes the time."""

import os
import subprocess
import sys
from pathlib import Path


def test_ranks_agree_with_one_process():
    worker = Path(__file__).with_name("distributed_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", str(worker)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    for rank in range(4):
        assert f"rank {rank}: agrees in a group of 4" in run.stdout
        assert f"rank {rank}: compiles" in run.stdout
        assert f"rank {rank}: raises with the others" in run.stdout
