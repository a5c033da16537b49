"""Towers on the device against the same on a CPU, and NaFlex without padding against each image alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import Siglip2VisionModel

from modeling_siglip_ext import SiglipExtModel, SiglipExtVisionConfig, SiglipExtVisionModel, native_config
from support.models import TINY_NAFLEX, make_config


# of float32, too, the patches' convolution multiplies numbers of ten bits on a GPU
TOLERANCES = {torch.float64: 1e-10, torch.float32: 5e-3, torch.bfloat16: 5e-2}
GRIDS = [(4, 4), (3, 5), (2, 8), (1, 15), (6, 2), (3, 5), (1, 1)]


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    return ((one - other).norm() / other.norm().clamp(min=1e-6)).item()


def dual_model(attention: str) -> SiglipExtModel:
    torch.manual_seed(0)
    config = make_config({"hidden_size": 64, "num_attention_heads": 4}, {"hidden_size": 64, "num_attention_heads": 4})
    return SiglipExtModel._from_config(config, attn_implementation=attention).train()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_embeddings_loss_and_gradients(dtype, attention, device):
    on_cpu = dual_model(attention).double()
    inputs = {"pixel_values": torch.randn(5, 3, 32, 32, dtype=torch.float64), "input_ids": torch.randint(99, (5, 8))}
    model = copy.deepcopy(on_cpu).to(device, dtype)
    expected = on_cpu(**inputs, return_loss=True)
    pixels = inputs["pixel_values"].to(device, dtype)
    got = model(pixel_values=pixels, input_ids=inputs["input_ids"].to(device), return_loss=True)
    for name in ("loss", "image_embeds", "text_embeds"):
        assert relative(got[name], expected[name]) <= TOLERANCES[dtype], name
    expected.loss.backward()
    got.loss.backward()
    flat = [torch.cat([p.grad.double().cpu().flatten() for p in one.parameters()]) for one in (model, on_cpu)]
    assert relative(*flat) <= 5 * TOLERANCES[dtype]


def test_autocast_keeps_the_head_in_float32(device):
    model = dual_model("sdpa")
    inputs = {"pixel_values": torch.randn(5, 3, 32, 32), "input_ids": torch.randint(99, (5, 8))}
    expected = model(**inputs, return_loss=True).loss
    on_device = {name: value.to(device) for name, value in inputs.items()}
    with torch.autocast(device.type, torch.bfloat16):
        loss = copy.deepcopy(model).to(device)(**on_device, return_loss=True).loss
    assert loss.dtype == torch.float32
    assert relative(loss, expected) <= 1e-2


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_inference_under_autocast(weights, device):
    """Where the products that inference joins are left alone: autocast does not know them."""
    model = dual_model("sdpa").eval()
    pixels = torch.randn(5, 3, 32, 32)
    on_device = copy.deepcopy(model).to(device, weights)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        found = on_device.get_image_features(pixel_values=pixels.to(device)).pooler_output
    with torch.no_grad():
        assert relative(found, model.get_image_features(pixel_values=pixels).pooler_output) <= 5e-2


def test_compiled(device):
    model = dual_model("sdpa").to(device)
    inputs = {"pixel_values": torch.randn(5, 3, 32, 32), "input_ids": torch.randint(99, (5, 8))}
    inputs = {name: value.to(device) for name, value in inputs.items()}
    model(**inputs, return_loss=True).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    backend = "inductor" if device.type == "cuda" else "eager"
    torch.compile(model, backend=backend)(**inputs, return_loss=True).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-2, atol=1e-5, msg=name)


# ---- NaFlex


def naflex_inputs(grids, length=18):
    shapes = torch.tensor(grids)
    mask = (torch.arange(length) < shapes.prod(1, keepdim=True)).long()
    return {
        "pixel_values": torch.randn(len(grids), length, 48) * mask[..., None],
        "pixel_attention_mask": mask,
        "spatial_shapes": shapes,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_images_without_padding(dtype, device):
    """Against stock's padded tower on the device, and against ours on a CPU; gradients as well."""
    torch.manual_seed(0)
    config = SiglipExtVisionConfig(**TINY_NAFLEX)
    ours = SiglipExtVisionModel(config)
    stock = Siglip2VisionModel(native_config(config))
    stock.load_state_dict(ours.state_dict())
    inputs = naflex_inputs(GRIDS)
    on_device = {name: value.to(device) for name, value in inputs.items()}
    on_device["pixel_values"] = on_device["pixel_values"].to(dtype)
    on_cpu = ours(**inputs).pooler_output
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    gradients = []
    for tower in (copy.deepcopy(ours), stock):
        tower = tower.to(device, dtype)
        pooled = tower(**on_device).pooler_output
        assert relative(pooled, on_cpu) <= tolerance
        F.mse_loss(pooled.float(), torch.ones_like(pooled, dtype=torch.float32)).backward()
        gradients.append(tower.encoder.layers[0].mlp.fc1.weight.grad)
    assert relative(*gradients) <= 2 * tolerance


def test_images_do_not_see_each_other(device):
    torch.manual_seed(0)
    tower = SiglipExtVisionModel(SiglipExtVisionConfig(**TINY_NAFLEX)).to(device).eval()
    inputs = {name: value.to(device) for name, value in naflex_inputs(GRIDS).items()}
    with torch.no_grad():
        together = tower(**inputs).pooler_output
        for number in range(len(GRIDS)):
            alone = tower(**{name: value[number : number + 1] for name, value in inputs.items()}).pooler_output
            torch.testing.assert_close(together[number : number + 1], alone, rtol=0, atol=1e-5)
