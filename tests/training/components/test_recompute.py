"""MLP activations that are computed again: the same gradients, bit for bit, and less kept."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from modeling_siglip_ext.training.components.recompute import recompute_activations
from modeling_siglip_ext.training.trainer import SiglipExtTrainer


def batch(pairs: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(pairs, 3, 16, 16, generator=generator)
    return {"pixel_values": pixels, "input_ids": torch.randint(90, (pairs, 12), generator=generator)}


def gradients(model: nn.Module, autocast: bool) -> list[torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(**batch(), return_loss=True).loss
    return list(torch.autograd.grad(loss, list(model.parameters())))


def activations_alive(model: nn.Module) -> list[bool]:
    """Whether the output of each MLP's activation outlives the forward pass."""
    kept = []

    class Watched(nn.Module):
        def __init__(self, function: nn.Module):
            super().__init__()
            self.function = function

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            activated = self.function(x)
            kept.append(weakref.ref(activated.untyped_storage()))
            return activated

    for module in [module for module in model.modules() if hasattr(module, "fc2")]:
        module.activation_fn = Watched(module.activation_fn)
    loss = model(**batch(), return_loss=True).loss
    gc.collect()
    alive = [reference() is not None for reference in kept]
    loss.backward()
    return alive


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["our_model", "stock_model"])
def test_gradients_are_the_same_bit_for_bit(kind, autocast, request):
    plain = request.getfixturevalue(kind).train()
    recomputing = copy.deepcopy(plain)
    layers = sum(part.num_hidden_layers for part in (plain.config.text_config, plain.config.vision_config))
    assert recompute_activations(recomputing) == layers + 1  # and the pooling head's
    assert all(torch.equal(a, b) for a, b in zip(gradients(plain, autocast), gradients(recomputing, autocast)))
    # A copy has MLPs of its own.
    copied = copy.deepcopy(recomputing)
    with torch.no_grad():
        copied.vision_model.encoder.layers[0].mlp.fc1.weight.zero_()
    assert all(torch.equal(a, b) for a, b in zip(gradients(plain, False), gradients(recomputing, False)))
    assert not torch.equal(gradients(copied, False)[-1], gradients(plain, False)[-1])


@pytest.mark.parametrize("kind", ["our_model", "stock_model"])
def test_the_activations_are_not_kept(kind, request):
    model = request.getfixturevalue(kind).train()
    recompute_activations(model)
    assert not any(activations_alive(model))


def test_they_are_kept_otherwise(our_model):
    assert all(activations_alive(our_model.train()))


def test_second_derivatives(our_model):
    plain = our_model.double().vision_model.encoder.layers[0].mlp
    recomputing = copy.deepcopy(plain)
    recompute_activations(recomputing)
    found = []
    for mlp in (plain, recomputing):
        x = torch.linspace(-1, 1, 2 * plain.fc1.in_features, dtype=torch.float64).view(2, -1).requires_grad_()
        (first,) = torch.autograd.grad(mlp(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [x, mlp.fc2.weight]))
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize(
    ("settings", "recomputed"),
    [({}, True), ({"recompute_activations": False}, False), ({"gradient_checkpointing": True}, False)],
)
def test_the_trainer_recomputes_unless_told_otherwise(our_model, arguments, settings, recomputed):
    assert "forward" not in vars(our_model.vision_model.encoder.layers[0].mlp)
    SiglipExtTrainer(model=our_model, args=arguments(**settings))
    assert ("forward" in vars(our_model.vision_model.encoder.layers[0].mlp)) == recomputed
