"""The losses over several processes. One launch serves all of it: starting processes is what takes the time."""

from pathlib import Path

from support.processes import run_worker


def test_ranks_agree_with_one_process():
    printed = run_worker(Path(__file__).with_name("distributed_worker.py"), processes=4)
    for rank in range(4):
        assert f"rank {rank}: agrees in a group of 4" in printed
        assert f"rank {rank}: compiles" in printed
        assert f"rank {rank}: raises with the others" in printed
