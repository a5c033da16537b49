"""What users of transformers do with a model: LoRA, compile, export, offload, checkpointing, int8."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import SiglipModel, SiglipVisionModel

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel, SiglipExtVisionModel, native_config
from support.models import TINY


TEXT = {**TINY, "vocab_size": 99, "max_position_embeddings": 8}
FIXED = {**TINY, "image_size": 32, "patch_size": 8}
NAFLEX = {**TINY, "naflex": True, "num_patches": 16, "patch_size": 4}
KINDS = ["fixed", "naflex"]


def build(kind: str, **changes: int) -> SiglipExtModel:
    """With changes of both towers."""
    torch.manual_seed(0)
    vision = FIXED if kind == "fixed" else NAFLEX
    config = SiglipExtConfig(text_config={**TEXT, **changes}, vision_config={**vision, **changes})
    return SiglipExtModel(config).eval()


def inputs_for(kind: str, batch: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = {"input_ids": torch.randint(99, (batch, 8), generator=generator)}
    if kind == "fixed":
        return inputs | {"pixel_values": torch.randn(batch, 3, 32, 32, generator=generator)}
    grids = torch.tensor([[4, 4], [3, 5], [2, 8], [6, 2]])[:batch]
    mask = (torch.arange(16) < grids.prod(1, keepdim=True)).long()
    patches = torch.randn(batch, 16, 48, generator=generator)
    return inputs | {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": grids}


def assert_same_logits(model: nn.Module, expected: torch.Tensor, inputs: dict, tolerance: float = 1e-5) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits_per_image, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("tower", ["text_model", "vision_model"])
def test_lora_trains_reloads_on_either_class_and_merges(tower, tmp_path):
    model = build("fixed")
    model.save_pretrained(tmp_path / "base")
    inputs = inputs_for("fixed")
    before = model(**inputs).logits_per_image.detach()
    config = LoraConfig(r=4, target_modules=rf"{tower}\.encoder\..*\.(q_proj|v_proj|out_proj|fc1)")
    tuned = get_peft_model(model, config)
    optimizer = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(20):
        loss = tuned.train()(**inputs, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    tuned.eval()
    expected = tuned(**inputs).logits_per_image.detach()
    assert not torch.allclose(expected, before, atol=1e-3)
    tuned.save_pretrained(tmp_path / "lora")

    for base in (SiglipExtModel, SiglipModel):
        fresh = base.from_pretrained(tmp_path / "base").eval()
        reloaded = PeftModel.from_pretrained(fresh, tmp_path / "lora").eval()
        assert_same_logits(reloaded, expected, inputs)
        assert_same_logits(reloaded.merge_and_unload().eval(), expected, inputs)

    merged = tuned.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert_same_logits(SiglipModel.from_pretrained(tmp_path / "merged").eval(), expected, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_compile_without_a_graph_break(kind):
    model, inputs = build(kind, num_hidden_layers=1), inputs_for(kind)  # a second layer would be traced like the first
    torch._dynamo.reset()
    # the graph is what is tried here, not the generated kernels: those need a C++ compiler and minutes
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = model(**inputs).logits_per_image.detach()
    assert_same_logits(compiled, expected, inputs)
    loss, eager = compiled(**inputs, return_loss=True).loss, model(**inputs, return_loss=True).loss
    torch.testing.assert_close(loss, eager)
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(**inputs, return_loss=True).loss.backward()
    for name, found, parameter in zip(dict(model.named_parameters()), gradients, model.parameters()):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compile_with_inductor(kind):
    model, inputs = build(kind), inputs_for(kind)
    expected = model(**inputs).logits_per_image.detach()
    assert_same_logits(torch.compile(model, fullgraph=True), expected, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_export_with_any_batch_size(kind, tmp_path):
    model, inputs = build(kind), inputs_for(kind)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (), inputs, dynamic_shapes={key: {0: batch} for key in inputs})
    torch.export.save(program, tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    for size in (4, 3):
        some = inputs_for(kind, size)
        with torch.no_grad():
            found, expected = exported(**some), model(**some)
        assert list(found) == list(expected)  # exporters name tensors by this order
        for name in ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"):
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_no_gradient(kind, reentrant):
    model, inputs = build(kind).train(), inputs_for(kind)
    model(**inputs).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    if reentrant:  # it needs an input that has a gradient
        model.enable_input_require_grads()
        model.vision_model.enable_input_require_grads()
    model(**inputs).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_offloaded_to_disk(kind, tmp_path):
    model, inputs = build(kind), inputs_for(kind)
    expected = model(**inputs).logits_per_image.detach()
    model.save_pretrained(tmp_path / "model")
    device_map = {
        "text_model": "disk",
        "vision_model.embeddings": "cpu",
        "vision_model.encoder.layers.0": "disk",
        "vision_model.encoder.layers.1": "cpu",
        "vision_model.post_layernorm": "cpu",
        "vision_model.head": "disk",
        "logit_scale": "cpu",
        "logit_bias": "cpu",
    }
    offloaded = SiglipExtModel.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    ).eval()
    assert offloaded.text_model.final_layer_norm.weight.device.type == "meta"
    assert_same_logits(offloaded, expected, inputs)


def test_device_map_auto_places_the_whole_model(tmp_path):
    model, inputs = build("fixed"), inputs_for("fixed")
    model.save_pretrained(tmp_path)
    placed = SiglipExtModel.from_pretrained(tmp_path, device_map="auto").eval()
    with torch.no_grad():
        logits = placed(**{key: tensor.to(placed.device) for key, tensor in inputs.items()}).logits_per_image
    torch.testing.assert_close(logits.cpu(), model(**inputs).logits_per_image.detach(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_int8_dynamic_quantisation(kind):
    model, inputs = build(kind), inputs_for(kind)
    with torch.no_grad():
        expected = model(**inputs)
    quantised = torch.ao.quantization.quantize_dynamic(build(kind), {nn.Linear}, dtype=torch.qint8)
    assert not isinstance(quantised.vision_model.encoder.layers[0].mlp.fc1, nn.Linear)
    with torch.no_grad():
        found = quantised(**inputs)
    cosine = nn.functional.cosine_similarity
    assert cosine(found.image_embeds, expected.image_embeds).min() > 0.99
    assert cosine(found.text_embeds, expected.text_embeds).min() > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_near(kind, dtype):
    model, inputs = build(kind), inputs_for(kind)
    with torch.no_grad():
        expected = model(**inputs)
        found = build(kind).to(dtype)(**inputs)
    assert found.image_embeds.dtype == dtype
    assert nn.functional.cosine_similarity(found.image_embeds.float(), expected.image_embeds).min() > 0.99


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_lora_on_the_map_heads_output_does_nothing_as_in_the_stock_class(backend):
    """torch's attention, of which the stock head is made, does not call that layer; "all-linear" names it."""
    model = SiglipExtVisionModel._from_config(build("fixed").config.vision_config, attn_implementation=backend)
    lora = LoraConfig(target_modules=r"head\.attention\.out_proj", init_lora_weights=False)
    tuned = get_peft_model(model, lora).eval()
    images = inputs_for("fixed")["pixel_values"]
    with torch.no_grad():
        found = tuned(images).pooler_output
        with tuned.disable_adapter():
            assert torch.equal(tuned(images).pooler_output, found)
    stock = SiglipVisionModel(native_config(model.config))
    tuned_stock = get_peft_model(stock, lora).eval()
    with torch.no_grad():
        expected = tuned_stock(images).pooler_output
        with tuned_stock.disable_adapter():
            assert torch.equal(tuned_stock(images).pooler_output, expected)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_attention_weights_come_back(backend):
    model = SiglipExtVisionModel._from_config(build("fixed").config.vision_config, attn_implementation=backend).eval()
    outputs = model(inputs_for("fixed")["pixel_values"], output_attentions=backend == "eager")
    if backend == "eager":
        assert [tuple(weights.shape) for weights in outputs.attentions] == [(4, 2, 16, 16)] * 2
    else:
        assert outputs.attentions is None
