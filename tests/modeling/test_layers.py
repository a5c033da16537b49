"""When a matrix product may take its activation along; what it gives then is tested on a GPU."""

import pytest
import torch
from torch import nn

from modeling_siglip_ext.layers import gelu_fits_in


class Adapted(nn.Linear):
    """A layer of another class, as adapters and quantisers put in place."""


def hooked(linear: nn.Linear) -> nn.Linear:
    linear.register_forward_hook(lambda *_: None)
    return linear


def offloaded(linear: nn.Linear) -> nn.Linear:
    linear.forward = lambda inputs: inputs  # as accelerate's hooks do
    return linear


@torch.no_grad()
def test_only_inference_in_half_precision_by_a_plain_layer():
    inputs = torch.zeros(1, 4)
    assert gelu_fits_in(nn.Linear(4, 4).bfloat16().eval(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert gelu_fits_in(nn.Linear(4, 4).eval(), inputs)
    assert not gelu_fits_in(nn.Linear(4, 4).eval(), inputs)  # float32
    assert not gelu_fits_in(nn.Linear(4, 4).bfloat16().train(), inputs)
    with torch.enable_grad():
        assert not gelu_fits_in(nn.Linear(4, 4).bfloat16().eval(), inputs)


@pytest.mark.parametrize("changed", [hooked, offloaded, lambda linear: Adapted(4, 4)])
@torch.no_grad()
def test_a_changed_layer_is_called_as_it_is(changed):
    assert not gelu_fits_in(changed(nn.Linear(4, 4)).bfloat16().eval(), torch.zeros(1, 4))
