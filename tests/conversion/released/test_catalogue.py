"""The catalogue against the published numbers, and what it makes of names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from modeling_siglip_ext import SiglipExtVisionConfig
from modeling_siglip_ext.conversion.__main__ import main
from modeling_siglip_ext.conversion.big_vision.config import describe
from modeling_siglip_ext.conversion.big_vision.names import rules
from modeling_siglip_ext.conversion.containers.arrays import LazyArray
from modeling_siglip_ext.conversion.errors import CheckpointError
from modeling_siglip_ext.conversion.model_folder.folder import choose_form
from modeling_siglip_ext.conversion.name_map import array_shapes
from modeling_siglip_ext.conversion.released.catalogue import entries, find, recognise


BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "conversion_catalogue.py"
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
    assert counts == {"siglip": 10, "siglip2": 17, "lit": 4, "clippo": 6, "paligemma": 31}


def distinct() -> list[str]:
    """One entry of each shape; files that differ in their weights or the type of their numbers are counted once."""
    found = {}
    for name, entry in entries().items():
        shape = (entry.image, entry.image_size, entry.text, entry.text_length, entry.projection_size)
        if entry.parameters is not None:
            found.setdefault((*shape, entry.embedding_size, entry.tokenizer and entry.tokenizer.vocab_size), name)
    return list(found.values())


@pytest.mark.parametrize("name", distinct())
def test_the_number_of_parameters_is_the_published_one(name):
    entry = find(name)
    config, _ = choose_form(entry.config(), None)
    count = sum(tensor.numel() for tensor in meta_model(config).parameters())
    assert entry.agrees(count)
    rounding = 500_000 if isinstance(entry.parameters, str) else 1
    assert not entry.agrees(count + 2 * rounding)
    assert not entry.agrees(count - 2 * rounding)


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
        ("pt_27b_448.npz", "pt_28b_448.bf16"),
        ("paligemma-3b-mix-448.f16.npz", "paligemma-3b-mix-448"),
        ("paligemma-3b-ft-science-qa-448.npz", "paligemma-3b-ft-*-448"),
        ("paligemma-3b-ft-docvqa-896.bf16.npz", "paligemma-3b-ft-*-896"),
        ("paligemma2-10b-mix-448.npz", "paligemma2-10b-mix-448.b16"),
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
    assert "638,443,521" in shown
    assert "becomes      SiglipExtModel, our form" in shown
    assert "licence      unknown" in shown
    assert main(["list", "clippo_b16_100c4"]) == 0
    assert "licence      apache-2.0" in (shown := capsys.readouterr().out)
    assert "parameters   93M" in shown
    assert main(["list", "LiT-XXL"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clippo_b16_100c4", "LiT-B16B", "siglip2_b16_naflex", "pt_224.f16"])
def test_an_entry_converts_at_full_size(name, tmp_path):
    """One of each kind; `benchmarks/conversion_catalogue.py` does the same with all of them."""
    results = tmp_path / "results.json"
    command = [sys.executable, str(BENCHMARK), name, "--folder", str(tmp_path), "--results", str(results)]
    subprocess.run(command, check=True, timeout=1800)
    found = json.loads(results.read_text())[name]
    assert found["result"] == ("no published number" if "naflex" in name else "as published")
    assert found["parameters"] == sum(tensor.numel() for tensor in meta_model(find(name).config()).parameters())
    assert f"| `{name}` |" in results.with_suffix(".md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]
