"""The catalogue against the published numbers, and what it makes of names."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from modeling_siglip_ext import SiglipExtConfig, SiglipExtVisionConfig
from modeling_siglip_ext.conversion.__main__ import main
from modeling_siglip_ext.conversion.arrays import LazyArray
from modeling_siglip_ext.conversion.big_vision import rules
from modeling_siglip_ext.conversion.catalogue import Entry, entries, find, recognise
from modeling_siglip_ext.conversion.convert import choose_form
from modeling_siglip_ext.conversion.describe import describe
from modeling_siglip_ext.conversion.errors import CheckpointError
from modeling_siglip_ext.conversion.name_map import array_shapes


# What open_clip 3.3.0 counts in its own models of the same sizes
OPEN_CLIP = json.loads(Path(__file__).with_name("open_clip_parameters.json").read_text())


def meta_model(config) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModel.from_config(config)


def jax_shapes(config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the file that an entry stands for."""
    one_tower = isinstance(config, SiglipExtVisionConfig)
    shapes = {
        f"vision_model.{name}" if one_tower else name: tuple(tensor.shape)
        for name, tensor in meta_model(config).state_dict().items()
    }
    return array_shapes(rules(config), shapes)


def test_every_released_file_of_the_papers_is_there():
    counts = {}
    for entry in entries().values():
        counts[entry.family] = counts.get(entry.family, 0) + 1
    assert counts == {"siglip": 10, "siglip2": 17, "lit": 4, "clippo": 6, "paligemma": 24}


@pytest.mark.parametrize("name", [name for name, entry in entries().items() if entry.parameters])
def test_the_number_of_parameters_is_the_published_one(name):
    entry = find(name)
    count = sum(tensor.numel() for tensor in meta_model(entry.config()).parameters()) / 1e6
    if entry.family == "clippo":  # published without decimals; it counts the MAP head, not the projection
        assert round(count - 768 * 769 / 1e6) == entry.parameters
    else:
        assert round(count, 1) == entry.parameters


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_the_number_of_parameters_is_that_of_open_clip(name):
    model = meta_model(find(name).config())
    assert sum(tensor.numel() for tensor in model.parameters()) == OPEN_CLIP[name]


@pytest.mark.parametrize("name", entries())
def test_a_file_of_these_shapes_is_recognised_as_what_it_is(name):
    """The shapes of every entry, read as if from a file: the same configuration comes out."""
    entry = find(name)
    config = entry.config()
    shapes = jax_shapes(config)
    if entry.family == "paligemma":
        shapes["llm/embedder/input_embedding"] = (257152, entry.projection_size)
    params = {key: LazyArray(shape, lambda: pytest.fail("nothing is read")) for key, shape in shapes.items()}
    found = describe(params, entry.choices)
    entry.check(found)
    expected = {"siglip": "siglip", "siglip2": "siglip2" if entry.image_size is None else "siglip"}
    _, native = choose_form(found, None)
    assert native == (entry.family in expected)
    if entry.family == "paligemma":  # its image tower alone has a stock form
        assert choose_form(found, "native")[1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("siglip2_b16_naflx", "did you mean siglip2_b16_naflex"),
        ("LiT-B16", "did you mean LiT-B16B"),
        ("webli_en_b16_256", "did you mean webli_en_b16_256_60500360"),
        ("???", "`siglip-ext-convert list` shows all"),
    ],
)
def test_the_nearest_name_is_suggested(name, text):
    with pytest.raises(CheckpointError, match="not in the catalogue") as raised:
        find(name)
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("downloads/webli_en_b16_256_60500360.npz", "webli_en_b16_256_60500360"),
        ("gs://big_vision/siglip2/siglip2_b16_naflex.npz", "siglip2_b16_naflex"),
        ("gs://vit_models/lit/big_vision/coco_B16B/checkpoint.npz", "coco_B16B"),
        ("paligemma-3b-pt-224.f16.npz", "pt_224.f16"),
        ("pt_224.bf16.npz", "pt_224.bf16"),
        ("my-run/checkpoint.npz", None),
    ],
)
def test_files_are_recognised_by_their_names(path, name):
    found = recognise(path)
    assert (found.name if found else None) == name


def test_the_traps_of_the_released_files():
    so400m = find("webli_en_so400m_384_58765454").config().vision_config
    assert (so400m.image_size, so400m.grid_size) == (384, 27)  # 378 would give the same grid
    assert find("webli_en_so400m_224_57633886").config().text_config.max_position_embeddings == 16
    assert not find("webli_i18n_so400m_16_256_78061115").config().text_config.use_head
    giant = find("siglip2_g-opt16_256").config().text_config
    assert (giant.hidden_size, giant.projection_size) == (1152, 1536)
    assert find("siglip2_b16_224").config().text_config.pad_token_id == 0
    assert find("webli_en_b16_224_63724782").config().text_config.pad_token_id == 1


def test_the_list_shows_every_entry(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in entries())
    assert main(["list", "LiT-L16L"]) == 0
    shown = capsys.readouterr().out
    assert "75.7" in shown
    assert "apache-2.0" in shown
    assert main(["list", "LiT-XXL"]) == 2


def write_random(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """An `.npz` of random weights, stored one array at a time."""
    from modeling_siglip_ext.conversion.npz import NpzWriter

    generator = torch.Generator().manual_seed(0)
    with NpzWriter(path) as writer:
        for name, shape in shapes.items():
            values = torch.randn(min(int(np.prod(shape)), 1 << 20), generator=generator)
            rest = int(np.prod(shape))
            blocks = []
            while rest > 0:
                blocks.append(values[: min(rest, len(values))])
                rest -= len(blocks[-1])
            writer.write(f"params/{name}", shape, torch.float32, blocks)


FULL = ["webli_en_b16_224_63724782", "siglip2_b16_naflex", "LiT-B16B", "clippo_b16_100c4", "pt_224.f16"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_an_entry_converts_at_full_size(name, tmp_path):
    entry: Entry = find(name)
    config = entry.config()
    shapes = jax_shapes(config)
    if entry.family == "clippo":
        shapes["t"] = (1,)
    if entry.family == "paligemma":
        shapes["llm/final_norm/scale"] = (entry.projection_size,)
    source = tmp_path / f"{name}.npz"
    write_random(source, shapes)
    assert main(["from-jax", str(source), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    report = json.loads((tmp_path / "out" / "conversion_report.json").read_text())
    assert report["catalogue"] == name
    expected = sum(tensor.numel() for tensor in meta_model(config).parameters())
    assert report["parameters"] == expected
    one_tower = entry.text is None
    ours = SiglipExtVisionConfig if one_tower else SiglipExtConfig
    assert ours.from_pretrained(tmp_path / "out").to_dict().keys() >= {"dtype"}
