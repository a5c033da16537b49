"""Which layers a GPU may compute together; what a product with its activation gives is tested on a GPU."""

import pytest
import torch
from torch import nn

from modeling_siglip_ext import SiglipExtVisionConfig, layers
from modeling_siglip_ext.layers import SiglipExtAttention, may_be_joined


class Adapted(nn.Linear):
    """A layer of another class, as adapters and quantisers put in place."""


def hooked(linear: nn.Linear) -> nn.Linear:
    linear.register_forward_hook(lambda *_: None)
    return linear


def offloaded(linear: nn.Linear) -> nn.Linear:
    linear.forward = lambda inputs: inputs  # as accelerate's hooks do
    return linear


class QuantisedTensor(torch.Tensor):
    """As a quantiser leaves it in a layer that is otherwise untouched."""


def quantised(linear: nn.Linear) -> nn.Linear:
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(QuantisedTensor), requires_grad=False)
    return linear


INPUTS = torch.zeros(1, 4, dtype=torch.bfloat16)


@torch.no_grad()
def test_only_inference_in_half_precision_by_a_plain_layer():
    assert may_be_joined(nn.Linear(4, 4).bfloat16().eval(), INPUTS)
    assert may_be_joined(nn.Linear(4, 4).half().eval(), INPUTS.half())
    assert not may_be_joined(nn.Linear(4, 4).eval(), INPUTS.float())
    assert not may_be_joined(nn.Linear(4, 4).bfloat16().eval(), INPUTS.float())
    assert not may_be_joined(nn.Linear(4, 4).bfloat16().train(), INPUTS)
    with torch.enable_grad():
        assert not may_be_joined(nn.Linear(4, 4).bfloat16().eval(), INPUTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_not_under_autocast(dtype):
    """CUDA's autocast leaves a product with its activation as it is: float32, or of two types, which raises."""
    with torch.autocast("cpu", torch.bfloat16):
        assert not may_be_joined(nn.Linear(4, 4).to(dtype).eval(), INPUTS)


@pytest.mark.parametrize("changed", [hooked, offloaded, quantised, lambda linear: Adapted(4, 4)])
@torch.no_grad()
def test_a_changed_layer_is_called_as_it_is(changed):
    assert not may_be_joined(changed(nn.Linear(4, 4).bfloat16()).bfloat16().eval(), INPUTS)


@torch.no_grad()
@pytest.mark.parametrize(("joined", "calls"), [(False, 4), (True, 1)])
def test_queries_keys_and_values_of_one_product_are_those_of_three(joined, calls, monkeypatch):
    torch.manual_seed(0)
    config = SiglipExtVisionConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4)
    config._attn_implementation = "sdpa"
    attention, states = SiglipExtAttention(config).bfloat16().eval(), torch.randn(3, 7, 32).bfloat16()
    expected, called, forward = attention(states)[0], [], nn.Linear.forward
    monkeypatch.setattr(layers, "on_gpu", lambda _: joined)
    monkeypatch.setattr(nn.Linear, "forward", lambda *inputs: called.append(inputs) or forward(*inputs))
    torch.testing.assert_close(attention(states)[0], expected)
    assert len(called) == calls
