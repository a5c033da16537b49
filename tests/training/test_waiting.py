"""No step of training waits for the device."""

import pytest

from modeling_siglip_ext.training.optimizers.momentum import Bf16MomentumOptimizer
from support.runs import KINDS, make_run
from support.waiting import assert_nothing_waits


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_reads_nothing_from_the_device(kind, tmp_path, monkeypatch):
    # as on CUDA: the loops that numba compiles for a CPU read everything
    monkeypatch.setattr(Bf16MomentumOptimizer, "_goes_together", lambda self, parameter: True)
    assert_nothing_waits(make_run(kind, tmp_path, use_cpu=True, dataloader_pin_memory=False))
