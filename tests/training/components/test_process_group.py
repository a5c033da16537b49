"""After leaving the process group no thread of gloo is left, whatever DTensor has cached."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from modeling_siglip_ext.training.components.process_group import leave_group


def gloo_threads() -> int:
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return sum("gloo" in name for name in names)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted by Linux' /proc")
def test_no_thread_of_gloo_is_left(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    tensor = distribute_tensor(torch.ones(4, 4), init_device_mesh("cpu", (1,)), [Shard(0)])
    dist.all_reduce((tensor @ tensor).redistribute(placements=[Replicate()]).full_tensor())
    assert gloo_threads() > 0
    del tensor
    leave_group()
    assert gloo_threads() == 0
    assert not dist.is_initialized()
    leave_group()  # nothing to leave
