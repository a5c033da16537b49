"""No step of training waits for the device."""

import re

import numpy as np
import pytest
import torch

from modeling_siglip_ext.losses.vocabulary import vocabulary_loss
from modeling_siglip_ext.training import SiglipExtTrainingArguments
from modeling_siglip_ext.training.arguments import _backend_with_the_host
from modeling_siglip_ext.training.optimizers.momentum import Bf16MomentumOptimizer
from support.runs import KINDS, make_run
from support.waiting import Waits, assert_nothing_waits


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_reads_nothing_from_the_device(kind, tmp_path, monkeypatch):
    # as on CUDA: the loops that numba compiles for a CPU read everything
    monkeypatch.setattr(Bf16MomentumOptimizer, "_goes_together", lambda self, parameter: True)
    assert_nothing_waits(make_run(kind, tmp_path, use_cpu=True, dataloader_pin_memory=False))


READS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "float": lambda x: float(x[0]),
    "index": lambda x: [1, 2, 3][x.new_zeros((), dtype=torch.int64)],
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "array": lambda x: np.asarray(x),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "put by a mask": lambda x: x.__setitem__(x > 0, x[0]),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.ones_like(x, dtype=torch.int64)),
    "equal": lambda x: torch.equal(x, x + 1),
    "tensor": lambda x: torch.tensor([1.0], device=x.device),
    "new_tensor": lambda x: x.new_tensor([1.0]),
    "in a backward": lambda x: Reads.apply(x.clone().requires_grad_()).sum().backward(),
    "in an operator": lambda x: vocabulary_loss(x[:, None], x[:, None], x, torch.zeros(3, dtype=torch.int64), x),
}


class Reads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * gradient.sum().item()


@pytest.mark.parametrize("read", READS)
def test_the_guard_sees(read):
    x = torch.ones(3)
    with Waits() as waits:
        torch.where(x > 0, x, 2.0).masked_fill(x > 2, 0.0).add_(torch.zeros(3)).argsort()
    assert not waits.found
    with Waits() as waits:
        READS[read](x)
    assert len(waits.found) >= 1
    assert {"test_waiting.py", "vocabulary.py"} & set(re.split("[/:]", waits.found[0]))
    with Waits(lambda: [x]) as waits:  # is known to be on the host
        x.tolist()
        x[0].item()
    assert not waits.found


def test_pinned_batches_are_copied_asynchronously(tmp_path):
    def given(**changes) -> bool:
        return SiglipExtTrainingArguments(str(tmp_path), use_cpu=True, **changes).accelerator_config.non_blocking

    assert given()
    assert given(accelerator_config={"even_batches": False})
    assert not given(accelerator_config={"non_blocking": False})
    assert not given(dataloader_pin_memory=False)


def test_processes_on_gpus_tell_each_other_numbers_by_the_host(tmp_path, monkeypatch):
    """Only where NCCL alone would be taken."""
    for name, value in (("WORLD_SIZE", "2"), ("ACCELERATE_USE_CPU", "false")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    assert _backend_with_the_host(False) == "cuda:nccl,cpu:gloo"
    assert _backend_with_the_host(True) is None
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert _backend_with_the_host(False) is None
    monkeypatch.delenv("WORLD_SIZE")
    assert SiglipExtTrainingArguments(str(tmp_path), use_cpu=True).ddp_backend is None
