"""The papers' optimisers on the device against the same on a CPU."""

import pytest
import torch

from modeling_siglip_ext.training.optimizers import build_optimizer


SHAPES = ((40, 36), (300, 33), (8, 3, 4, 4), (1, 1, 64), (9,), (1,))


def trained(name: str, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Parameters and second moments after five steps with the same gradients."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in SHAPES]
    groups = [
        {"params": parameters[:3], "lr": 1e-2, "weight_decay": 0.1},
        {"params": parameters[3:], "lr": 5e-3, "weight_decay": 0.0},
    ]
    optimizer = build_optimizer(name, groups)
    for _ in range(5):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(device, dtype)
        optimizer.step()
    state = [value for one in optimizer.state.values() for value in one.values() if isinstance(value, torch.Tensor)]
    return [x.detach().double().cpu() for x in (*parameters, *state)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["adamw", "adamw_bf16", "scaling_vit_adafactor"])
def test_steps_are_those_of_a_cpu(name, dtype, device):
    tolerance = 1e-3 if dtype == torch.float32 else 1e-2  # some first moments in bfloat16 are rounded the other way
    for one, other in zip(trained(name, device, dtype), trained(name, torch.device("cpu"), dtype), strict=True):
        assert (one - other).norm() <= tolerance * other.norm()
