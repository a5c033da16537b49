"""What a worker computes, against the functions of the package."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel, ViTImageProcessor

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtModel,
    SiglipExtNaflexImageProcessor,
    SiglipExtProcessor,
    SiglipExtTextConfig,
    SiglipExtTextModel,
    encode_images,
    encode_texts,
)
from support.images import noise
from support.models import TINY, TINY_NAFLEX, TINY_TEXT, make_processor
from support.serving import png


pytest.importorskip("fastapi", reason="the server needs siglip-ext[serve]")

from modeling_siglip_ext.serving.encoder import Encoder
from modeling_siglip_ext.serving.settings import EncoderSettings


@pytest.fixture(scope="module")
def encoder(model_folder):
    return Encoder(EncoderSettings(str(model_folder), device="cpu"))


@pytest.fixture(scope="module")
def naflex_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("naflex")
    tokenizer = make_processor(["a cat"]).tokenizer
    text = {**TINY, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    config = SiglipExtConfig(text_config=text, vision_config=TINY_NAFLEX)
    SiglipExtModel(config).save_pretrained(folder)
    images = SiglipExtNaflexImageProcessor(patch_size=4, max_num_patches=16)
    SiglipExtProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_facts_are_those_of_the_model(encoder, parts):
    model, _ = parts
    facts = encoder.facts()
    assert facts.dimensions == 32
    assert facts.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert facts.logit_bias == pytest.approx(model.logit_bias.item())
    assert facts.loss_type == "sigmoid"


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_vectors_do_not_depend_on_what_shares_their_batch(encoder, parts, batch):
    images = [png(noise(20 + 5 * seed, 30, seed=seed)) for seed in range(7)]
    texts = [f"picture number {number}" * (1 + number) for number in range(7)]
    for kind, items, encode in (("image", images, encode_images), ("text", texts, encode_texts)):
        wanted = encode(*parts, items, batch_size=7)
        found = [encoder.encode(kind, items[i : i + batch]).embeds for i in range(0, 7, batch)]
        np.testing.assert_allclose(np.concatenate(found), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["fixed", "naflex"])
def test_an_exported_folder_is_served_like_its_model(exported, kind):
    source, folder = exported(kind)
    ours = Encoder(EncoderSettings(str(folder), backend="onnx"))
    wanted = Encoder(EncoderSettings(str(source), device="cpu"))
    assert ours.facts().dimensions == wanted.facts().dimensions
    assert ours.facts().logit_bias == pytest.approx(wanted.facts().logit_bias)
    images = [png(noise(20 + 5 * seed, 30, seed=seed)) for seed in range(5)]
    for what, items in (("image", images), ("text", ["red circle", "yellow stripes"])):
        np.testing.assert_allclose(
            ours.encode(what, items).embeds, wanted.encode(what, items).embeds, rtol=0, atol=1e-5
        )


def test_a_broken_image_is_an_error_of_its_own(encoder, parts):
    good = png(noise())
    found = encoder.encode("image", [good, b"no image", good, good[:100], b"\x00"])
    assert sorted(found.errors) == [1, 3, 4]
    np.testing.assert_allclose(found.embeds[[0, 2]], encode_images(*parts, [good, good]), rtol=0, atol=1e-5)
    assert encoder.encode("image", [b"no image"]).errors.keys() == {0}


def test_vectors_that_are_not_finite_are_errors(model_folder):
    encoder = Encoder(EncoderSettings(str(model_folder), device="cpu"))
    with torch.no_grad():
        encoder.model.text_model.head.bias.fill_(torch.nan)
    assert "not finite" in encoder.encode("text", ["a"]).errors[0]


def test_a_model_that_gives_no_numbers_is_refused_at_the_start(model_folder):
    encoder = Encoder(EncoderSettings(str(model_folder), device="cpu"))
    for tower in (encoder.model.text_model.head, encoder.model.vision_model.post_layernorm):
        bias = tower.bias.detach().clone()
        with torch.no_grad():
            tower.bias.fill_(torch.nan)
        with pytest.raises(ValueError, match="not finite"):
            encoder.facts()
        with torch.no_grad():
            tower.bias.copy_(bias)
    encoder.facts()


@pytest.mark.parametrize(
    ("vision", "patches"),
    [
        (Dinov2Model(Dinov2Config(**TINY, image_size=518, patch_size=14)), (56 // 14) ** 2),
        (ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[32], depths=[1])), 1),
    ],
    ids=["larger in training", "without patches"],
)
def test_towers_from_elsewhere(vision, patches, tmp_path):
    """Their images are as large as their processor makes them, whatever their configuration says."""
    tokenizer = make_processor(["a cat"]).tokenizer
    text = SiglipExtTextModel(SiglipExtTextConfig(**{**TINY_TEXT, "vocab_size": len(tokenizer)}))
    model = SiglipExtModel.from_vision_text_pretrained(vision, text).eval()
    processor = SiglipExtProcessor(ViTImageProcessor(size={"height": 56, "width": 56}), tokenizer)
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    encoder = Encoder(EncoderSettings(str(tmp_path), device="cpu"))
    assert encoder.facts().dimensions == 32
    images = [png(noise(60, 40)), png(noise(30, 90, seed=1))]
    found = encoder.encode("image", images)
    assert found.lengths == [patches, patches]
    np.testing.assert_allclose(found.embeds, encode_images(model, processor, images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"upscale": False}, {"max_num_patches": 9, "batch_tokens": 20}])
def test_naflex_images_are_computed_by_tokens(naflex_folder, monkeypatch, settings):
    encoder = Encoder(EncoderSettings(str(naflex_folder), device="cpu", **settings))
    images = [png(noise(4 * width, 4 * height, seed=width)) for width, height in ((1, 1), (6, 2), (3, 3), (2, 9))]
    passes = []
    compute = encoder.model.get_image_features
    monkeypatch.setattr(encoder.model, "get_image_features", lambda **x: passes.append(x) or compute(**x))
    found = encoder.encode("image", [*images, b"broken"])
    assert found.errors.keys() == {4}
    assert found.lengths == [settings.get("max_num_patches", 16)] * 5
    assert max(one["pixel_values"].shape[0] * one["pixel_values"].shape[1] for one in passes) <= (
        settings.get("batch_tokens", 32 * 16)
    )
    wanted = encode_images(encoder.model, encoder.processor, images, batch_size=1, **settings)
    np.testing.assert_allclose(found.embeds[:4], wanted, rtol=0, atol=1e-5)


IN_A_WORKER = """
import sys
from modeling_siglip_ext.images import UnreadableImageError, load_image
from modeling_siglip_ext.serving.encoder import prepare_process

prepare_process(None, 10_000)
for path in sys.argv[1:]:
    try:
        print(load_image(open(path, "rb").read()).size)
    except UnreadableImageError as error:
        print(str(error).replace("\\n", " "))
"""


def test_bombs_and_formats_that_start_programs_are_refused_in_a_worker(tmp_path):
    kept = io.BytesIO()
    noise(100, 100).save(kept, "WEBP")
    bomb = png(Image.new("1", (20_000, 20_000)))  # 400 million pixels in 50 kB
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    files = {"kept": kept.getvalue(), "large": png(Image.new("RGB", (101, 100))), "bomb": bomb, "eps": postscript}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-c", IN_A_WORKER, *(str(tmp_path / name) for name in files)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == "(100, 100)"
    assert "decompression bomb" in lines[1]
    assert "decompression bomb" in lines[2]
    assert "not an image that PIL knows" in lines[3]
