"""Which part of a model a parameter belongs to, for everything that asks."""

import pytest
import torch
from torch import nn
from transformers import TrainerState

from modeling_siglip_ext.training.components.monitor import Monitor
from modeling_siglip_ext.training.components.towers import core_model, part_of


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("vision_model.embeddings.patch_embedding.weight", "vision"),
        ("base_model.model.text_model.head.weight", "text"),
        ("text_adapter.projection.weight", "text_adapter"),
        ("vision_adapter.projection.weight", "vision_adapter"),
        ("logit_scale", "head"),
        ("base_model.model.logit_bias", "head"),
        ("text_model_like.weight", None),
        ("classifier.weight", None),
    ],
)
def test_parts(name, part):
    assert part_of(name) == part


def test_every_parameter_of_a_dual_model_has_a_part(our_model, stock_model):
    for model in (our_model, stock_model):
        parts = {part_of(name) for name, _ in model.named_parameters()}
        assert parts == {"vision", "text", "head"}


def test_logged_norms_count_an_adapter_with_its_tower(arguments):
    model = nn.ModuleDict({"vision_model": nn.Linear(1, 1, False), "vision_adapter": nn.Linear(1, 1, False)})
    for parameter, grad in zip(model.parameters(), (3.0, 4.0)):
        parameter.grad = torch.full_like(parameter, grad)
    monitor = Monitor(lambda: model)
    monitor.gradients(arguments(), TrainerState(logging_steps=1), None)
    assert {part: norm.item() for part, norm in monitor.grad_norms.items()} == {"vision": 5.0}


def test_a_compiled_model_is_taken_out_of_its_wrapper(our_model):
    assert core_model(torch.compile(our_model)) is our_model
