"""Exported towers against the model in torch, on batches, grids and lengths that no tracing saw."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, BertConfig, BertModel, Dinov2Config, Dinov2Model

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel
from modeling_siglip_ext.conversion.export.onnx_file import write_onnx
from modeling_siglip_ext.conversion.export.towers import DUAL, TEXT, VISION, build_tower, limits
from siglip_ext_runtime import ExportedModel
from siglip_ext_runtime.backends import onnx_runtime
from support.models import TINY, TINY_NAFLEX, TINY_TEXT, TINY_VISION, make_config


def naflex_batch(grids: torch.Tensor, padding: int = 0, patch: int = 4) -> dict[str, torch.Tensor]:
    """Random patches of images of these grids, and some padding more than the longest needs."""
    lengths = grids.prod(dim=1, keepdim=True)
    length = int(lengths.max()) + padding
    mask = (torch.arange(length) < lengths).long()
    patches = torch.randn(len(grids), length, 3 * patch**2) * mask[..., None]
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": grids}


def largest(found: np.ndarray, wanted: torch.Tensor) -> float:
    return float(np.abs(found - wanted.numpy()).max())


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_of_images_and_texts_is_the_stock_models(exported, batch):
    folder, out = exported("fixed")
    stock, model = AutoModel.from_pretrained(folder).eval(), ExportedModel(out)
    images, ids = torch.randn(batch, 3, 32, 32), torch.randint(300, (batch, 16))
    with torch.no_grad():
        pairs = [
            (model.get_image_features(pixel_values=images), stock.get_image_features(pixel_values=images)),
            (model.get_text_features(input_ids=ids), stock.get_text_features(input_ids=ids)),
        ]
    for found, wanted in pairs:
        torch.testing.assert_close(found.last_hidden_state, wanted.last_hidden_state, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.pooler_output, wanted.pooler_output, rtol=1e-4, atol=1e-5)
        assert largest(found.embeds.numpy(), F.normalize(wanted.pooler_output, dim=-1)) < 1e-6


@pytest.mark.parametrize("longest", [16, 40, 160])
def test_any_grid_of_naflex(exported, longest):
    folder, out = exported("naflex")
    torch_model, model = SiglipExtModel.from_pretrained(folder).eval(), ExportedModel(out)
    rows = torch.randint(1, longest + 1, (50,))
    columns = 1 + (torch.rand(50) * (longest // rows)).long().clamp(max=longest - 1)
    grids = torch.stack([rows, columns.clamp(max=longest // rows)], dim=1)
    inputs = naflex_batch(grids, padding=3)
    with torch.no_grad():
        wanted = F.normalize(torch_model.get_image_features(**inputs).pooler_output, dim=-1)
    assert largest(model.get_image_features(**inputs).embeds.numpy(), wanted) < 1e-6


def test_a_naflex_image_is_the_same_alone_and_in_any_batch(exported):
    model = ExportedModel(exported("naflex")[1])
    together = naflex_batch(torch.tensor([[1, 1], [5, 3], [2, 20]]))
    alone = {"pixel_values": together["pixel_values"][1:2, :15], "spatial_shapes": together["spatial_shapes"][1:2]}
    alone["pixel_attention_mask"] = torch.ones(1, 15)
    embeds = model.get_image_features(**together).embeds[1]
    torch.testing.assert_close(model.get_image_features(**alone).embeds[0], embeds, rtol=0, atol=1e-6)


def test_names_are_those_that_clients_look_for(exported):
    pixels = ["pixel_values"]
    for kind, images in (("fixed", pixels), ("naflex", [*pixels, "pixel_attention_mask", "spatial_shapes"])):
        out = exported(kind)[1]
        vision, text = (onnx.load(out / f"{name}.onnx") for name in (VISION, TEXT))
        assert [one.name for one in vision.graph.input] == images
        assert [one.name for one in vision.graph.output] == ["last_hidden_state", "pooler_output", "image_embeds"]
        assert [one.name for one in text.graph.input] == ["input_ids"]
        assert [one.name for one in text.graph.output] == ["last_hidden_state", "pooler_output", "text_embeds"]
        (ids,) = text.graph.input
        assert ids.type.tensor_type.elem_type == onnx.TensorProto.INT64
        assert text.opset_import[0].version >= 20
        # by which quantisers find layers
        scopes = [{one.key: one.value for one in node.metadata_props} for node in text.graph.node]
        assert any("layers.0.self_attn.q_proj" in scope.get("pkg.torch.onnx.name_scopes", "") for scope in scopes)


def write(model: SiglipExtModel, name: str, folder, **options):
    tower = build_tower(model.eval(), model.config, name, (32, 32))
    return onnx_runtime(write_onnx(tower, folder, limits(model.config), **options).path)


@pytest.mark.long
@pytest.mark.parametrize("naflex", [pytest.param(False, marks=pytest.mark.slow), True])
def test_both_towers_in_one_file(tmp_path, naflex):
    vision = TINY_NAFLEX if naflex else TINY_VISION
    model = SiglipExtModel(SiglipExtConfig(text_config=TINY_TEXT, vision_config=vision)).eval()
    run = write(model, DUAL, tmp_path)
    images = (
        naflex_batch(torch.tensor([[2, 7], [4, 4], [1, 9]])) if naflex else {"pixel_values": torch.randn(3, 3, 32, 32)}
    )
    inputs = {"input_ids": torch.randint(99, (5, 8)), **images}
    with torch.no_grad():
        wanted = model.eval()(**inputs)
    found = run({name: value.numpy() for name, value in inputs.items()})
    assert list(found) == ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"]
    for name, array in found.items():
        assert largest(array, wanted[name]) < (1e-5 if "logits" in name else 1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["first", "last", "mean", "max"])
def test_towers_from_elsewhere(tmp_path, pooling):
    vision = Dinov2Model(Dinov2Config(**TINY, image_size=32, patch_size=8))
    text = BertModel(BertConfig(**{**TINY, "hidden_size": 24}, vocab_size=60, pad_token_id=0))
    model = SiglipExtModel.from_vision_text_pretrained(
        vision, text, vision_pooling="mean", text_pooling=pooling
    ).eval()
    ids = torch.randint(1, 60, (4, 11))
    ids[1, 5:] = 0
    mask = ids.ne(0).long()
    with torch.no_grad():
        wanted = F.normalize(model.get_text_features(ids, mask).pooler_output, dim=-1)
    found = write(model, TEXT, tmp_path)({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    assert largest(found["text_embeds"], wanted) < 1e-6
    if pooling == "first":
        images = torch.randn(5, 3, 32, 32)
        with torch.no_grad():
            wanted = F.normalize(model.get_image_features(images).pooler_output, dim=-1)
        found = write(model, VISION, tmp_path)({"pixel_values": images.numpy()})
        assert largest(found["image_embeds"], wanted) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["map", "mean", "max", "first", "cls"])
def test_each_pooling_of_images(tmp_path, pooling):
    model = SiglipExtModel(make_config(vision={"pooling": pooling})).eval()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        wanted = F.normalize(model.get_image_features(images).pooler_output, dim=-1)
    assert largest(write(model, VISION, tmp_path)({"pixel_values": images.numpy()})["image_embeds"], wanted) < 1e-6


def test_large_weights_lie_beside_the_file_under_the_name_that_clients_look_for(tmp_path):
    model = SiglipExtModel(make_config()).eval()
    run = write(model, TEXT, tmp_path, external_above=1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text_model.onnx", "text_model.onnx_data"]
    weights = sum(parameter.numel() for parameter in model.text_model.parameters())
    assert (tmp_path / "text_model.onnx_data").stat().st_size > weights * 4 * 0.9
    assert str(Path(__file__).parents[3]).encode() not in (tmp_path / "text_model.onnx").read_bytes()
    ids = torch.randint(99, (3, 8))
    with torch.no_grad():
        wanted = F.normalize(model.get_text_features(ids).pooler_output, dim=-1)
    assert largest(run({"input_ids": ids.numpy()})["text_embeds"], wanted) < 1e-6
