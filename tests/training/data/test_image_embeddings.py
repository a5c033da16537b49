"""Image embeddings computed once: those of the tower, fingerprinted, resumable, and the same training result."""

import copy
import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, ViTConfig, ViTImageProcessor, ViTModel

from modeling_siglip_ext import SiglipExtModel, SiglipExtNaflexImageProcessor, SiglipExtProcessor, encode_images
from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.image_budget import ImageBudget
from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset
from modeling_siglip_ext.training.components.embedding_tower import EmbeddingTower
from modeling_siglip_ext.training.data.fingerprint import evenly, weights_digest
from modeling_siglip_ext.training.data.image_embeddings import EmbeddingTextDataset, budget_of, load_embeddings
from modeling_siglip_ext.training.data.samples import TooManyBadSamples
from modeling_siglip_ext.training.run.precompute import precompute
from modeling_siglip_ext.training.trainer import SiglipExtTrainer


@pytest.fixture
def saved(our_model, processor, tmp_path) -> str:
    our_model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def folder(saved, rows, tmp_path):
    precompute(saved, rows, tmp_path / "embeddings", batch_size=5, part_rows=6)
    return tmp_path / "embeddings"


def test_they_are_the_towers(folder, saved, rows, processor, our_model):
    assert sorted(path.name for path in folder.iterdir()) == [
        "_settings.json",
        "part-00000.safetensors",
        "part-00001.safetensors",
        "part-00002.safetensors",
    ]
    embeddings, valid = load_embeddings(folder, saved, rows)
    pixels = processor(images=list(rows["image"]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = our_model.eval().get_image_features(pixels).pooler_output
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-5)
    assert valid.all()


def test_a_second_call_continues(folder, saved, rows):
    shard = folder / "part-00001.safetensors"
    before = load_file(shard)["embeds"].clone()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path != shard}
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of 3 parts.*e.g. part-00001.*continues"):
        load_embeddings(folder, saved, rows)
    precompute(saved, rows, folder, batch_size=5, part_rows=6)
    assert torch.equal(load_file(shard)["embeds"], before)
    assert kept == {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path != shard}


def test_processes_share_the_parts(folder, saved, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "wait_for_all", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, parts in enumerate(({0, 2}, {0, 1, 2})):
        monkeypatch.setenv("RANK", str(rank))
        precompute(saved, rows, tmp_path / "two", batch_size=5, part_rows=6)
        assert {int(path.stem[5:]) for path in (tmp_path / "two").glob("part-*")} == parts
    one, two = (load_embeddings(path, saved, rows)[0] for path in (folder, tmp_path / "two"))
    assert torch.equal(one, two)


def test_the_fingerprint(folder, saved, rows, processor, our_model, tmp_path):
    with pytest.raises(ValueError, match=r"rows \(there 16, now 15\).*precompute them again"):
        load_embeddings(folder, saved, rows.select(range(15)))
    with pytest.raises(ValueError, match=r"images \(there"):
        load_embeddings(folder, saved, rows.select([15, *range(15)]))
    other = copy.deepcopy(our_model)
    with torch.no_grad():
        other.vision_model.head.probe[0, 0, 0] += 1e-3
    for name in ("weights", "text"):
        other.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        with torch.no_grad():  # a text tower of other weights does not matter
            other.vision_model.head.probe.copy_(our_model.vision_model.head.probe)
            other.text_model.head.bias += 1
    with pytest.raises(ValueError, match=r"weights \(there"):
        load_embeddings(folder, str(tmp_path / "weights"), rows)
    load_embeddings(folder, str(tmp_path / "text"), rows)
    changed = AutoImageProcessor.from_pretrained(saved)
    changed.image_mean = [0.4, 0.5, 0.5]
    (tmp_path / "text" / "processor_config.json").unlink()
    changed.save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match=r"preprocessing \(there"):
        load_embeddings(folder, str(tmp_path / "text"), rows)
    with pytest.raises(ValueError, match=r"weights \(there .*output_dir"):
        precompute(str(tmp_path / "weights"), rows, folder, batch_size=5, part_rows=6)
    with pytest.raises(ValueError, match=r"dtype \(there torch.float32, now torch.bfloat16\).*output_dir"):
        precompute(saved, rows, folder, batch_size=5, part_rows=6, dtype=torch.bfloat16)
    with pytest.raises(FileNotFoundError, match="precompute"):
        load_embeddings(tmp_path / "none", saved, rows)


def test_bad_images(saved, rows, tmp_path):
    images = [row["image"] for row in rows.cast_column("image", Image(decode=False))]
    images[3] = {"bytes": b"no image", "path": None}
    broken = Dataset.from_dict({"image": images, "caption": rows["caption"]}).cast_column("image", Image())
    with pytest.raises(TooManyBadSamples, match="example 3"):
        precompute(saved, broken, tmp_path / "strict")
    precompute(saved, broken, tmp_path / "lenient", max_bad_fraction=0.1)
    embeddings, valid = load_embeddings(tmp_path / "lenient", saved, broken)
    assert valid.tolist() == [n != 3 for n in range(16)]
    assert embeddings.isfinite().all(1).tolist() == valid.tolist()
    assert store.read(tmp_path / "lenient")[1] == {3: "8 bytes is not an image that PIL knows"}
    dataset = EmbeddingTextDataset(broken, embeddings, valid, max_bad_fraction=0.1)
    assert dataset.rows == [n for n in range(16) if n != 3]
    assert torch.equal(dataset[3]["embedding"], embeddings[4])
    assert dataset[3]["caption"] == rows[4]["caption"]


def test_training_from_them_equals_the_locked_tower(our_model, rows, processor, saved, arguments, tmp_path):
    """Without decoding an image, and without an image tower."""
    precompute(saved, rows, tmp_path / "embeddings")
    embeddings, valid = load_embeddings(tmp_path / "embeddings", saved, rows)
    without_images = rows.remove_columns("image")
    datasets = {
        "locked": ImageTextDataset(rows, caption_column="captions"),
        "embeddings": EmbeddingTextDataset(without_images, embeddings, valid, caption_column="captions"),
    }
    results, losses = {}, {}
    for name, dataset in datasets.items():
        model = copy.deepcopy(our_model)
        if name == "embeddings":
            model.vision_model = EmbeddingTower(model.config.vision_config)
            assert not any("vision" in parameter for parameter, _ in model.named_parameters())
        args = arguments(lock_towers=["vision"], max_steps=6, mini_batch_size=4)
        trainer = SiglipExtTrainer(
            model=model, args=args, train_dataset=dataset, data_collator=ImageTextCollator(processor)
        )
        trainer.train()
        results[name] = dict(model.named_parameters())
        losses[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses["embeddings"] == pytest.approx(losses["locked"], rel=1e-5)
    for name, parameter in results["embeddings"].items():
        if name.endswith("k_proj.bias"):
            continue  # softmax does not see it: its gradient is rounding alone, which Adam makes whole steps of
        torch.testing.assert_close(parameter, results["locked"][name], atol=1e-4, rtol=1e-3, msg=name)


def test_an_image_model_from_elsewhere(rows, tmp_path):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    vit = ViTModel(config, add_pooling_layer=False).eval()
    vit.save_pretrained(tmp_path / "vit")
    image_processor = ViTImageProcessor(size={"height": 16, "width": 16})
    image_processor.save_pretrained(tmp_path / "vit")
    precompute(str(tmp_path / "vit"), rows, tmp_path / "embeddings", pooling="mean")
    embeddings, _ = load_embeddings(tmp_path / "embeddings", str(tmp_path / "vit"), rows, pooling="mean")
    pixels = image_processor(list(rows["image"]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = vit(pixels).last_hidden_state.mean(1)
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"pooling \(there mean, now default\)"):
        load_embeddings(tmp_path / "embeddings", str(tmp_path / "vit"), rows)


def test_a_head_on_a_tower_from_elsewhere_is_in_the_fingerprint(our_model, tmp_path):
    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    model = SiglipExtModel.from_vision_text_pretrained(ViTModel(config), our_model.text_model, projection_size=32)
    head, text = (next(module.parameters()) for module in (model.vision_adapter, model.text_model))
    digests = []
    for change in (None, text, head):
        if change is not None:
            with torch.no_grad():
                change.add_(1)
        model.save_pretrained(tmp_path / "model")
        digests.append(weights_digest(str(tmp_path / "model")))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(("part", "other"), [("vision_", "text_"), ("text_", "vision_")])
def test_what_weights_do_not_tell_of_a_tower_is_in_its_fingerprint(part, other, saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    digests = [weights_digest(saved, part), weights_digest(saved, other)]
    config[f"{part}config"]["hidden_act"] = "quick_gelu"
    (folder / "config.json").write_text(json.dumps(config))
    assert weights_digest(str(folder), part) != digests[0]
    assert weights_digest(str(folder), other) == digests[1]


@pytest.fixture
def naflex(saved, processor, tmp_path) -> str:
    """The same model as NaFlex."""
    SiglipExtModel.from_pretrained(saved, naflex=True).save_pretrained(tmp_path / "naflex")
    images = SiglipExtNaflexImageProcessor(patch_size=4, max_num_patches=16)
    SiglipExtProcessor(images, processor.tokenizer).save_pretrained(str(tmp_path / "naflex"))
    return str(tmp_path / "naflex")


def test_a_naflex_tower_sees_so_many_patches(naflex, saved, rows, tmp_path):
    budget = ImageBudget(9, upscale=False, batch_tokens=20)
    precompute(naflex, rows, tmp_path / "embeddings", budget=budget)
    model, images = SiglipExtModel.from_pretrained(naflex), AutoImageProcessor.from_pretrained(naflex)
    expected = encode_images(model, images, list(rows["image"]), max_num_patches=9, upscale=False, normalize=False)
    found, _ = load_embeddings(tmp_path / "embeddings", naflex, rows)  # it knows what they were made with
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-5, rtol=1e-5)
    assert budget_of(tmp_path / "embeddings") == ImageBudget(9, upscale=False)
    for other, message in (
        (None, r"max_num_patches \(there 9, now 16\), upscale \(there False, now True\)"),
        (ImageBudget(9), r"with other upscale \(there False, now True\):"),
    ):
        with pytest.raises(ValueError, match=message):
            precompute(naflex, rows, tmp_path / "embeddings", budget=other)
    with pytest.raises(ValueError, match="are for NaFlex models: this one takes images of one size"):
        precompute(saved, rows, tmp_path / "fixed", budget=budget)


@pytest.mark.parametrize("rows", [0, 1, 7, 1000, 1001, 16_777_217, 20_000_000, 3_000_000_000])
def test_probes_lie_evenly_among_the_rows(rows):
    found = evenly(rows, 1000)
    assert len(found) == min(rows, 1000)
    assert len(set(found)) == len(found)
    if rows:
        assert (found[0], found[-1]) == (0, rows - 1)
        gaps = {after - before for before, after in pairwise(found)}
        assert not gaps or max(gaps) - min(gaps) <= 1
