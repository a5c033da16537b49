"""Random generators of devices that are not here: of which kind they are is known from fake tensors."""

import contextlib
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from modeling_siglip_ext.training.components.backend import Backend


class Generator:
    """Of one device."""

    def __init__(self):
        self.state = torch.arange(3)

    def get_rng_state(self):
        return self.state.clone()

    def set_rng_state(self, state):
        self.state = state


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_the_devices_own_generator_is_set_again(kind, monkeypatch):
    with FakeTensorMode():
        on_device = torch.empty(2, device=kind)
    generators = {name: Generator() for name in ("cuda", "xpu", "mps")}
    for name, generator in generators.items():
        module = types.SimpleNamespace(get_rng_state=generator.get_rng_state, set_rng_state=generator.set_rng_state)
        if name != "mps":  # torch.mps has no devices to go through
            module.device = lambda index: contextlib.nullcontext()
        monkeypatch.setattr(torch, name, module)
    restore = Backend().random_state([torch.empty(2), on_device])
    for generator in generators.values():
        generator.state = torch.zeros(3)
    restore()
    assert {name for name, generator in generators.items() if generator.state.any()} == {kind}


def test_of_the_cpu_alone_there_is_nothing_to_remember():
    Backend().random_state([torch.empty(2), torch.empty(2, device="meta")])()
