"""NaFlex models from the command line: from scratch, fine-tuned, from shards, locked; and what is refused."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

from modeling_siglip_ext import (
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtProcessor,
    encode_images,
    encode_texts,
)
from modeling_siglip_ext.training.__main__ import main
from support.images import noise
from support.shards import write_tar


pytestmark = pytest.mark.long
TOWER = "{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2"
SCRATCH = f"""
vision_config: {TOWER}, naflex: true, num_patches: 16, patch_size: 4}}
text_config: {TOWER}, max_position_embeddings: 64}}
vocab_size: 300
eval_fraction: 0.25
per_device_train_batch_size: 4
max_steps: 3
learning_rate: 1e-3
eval_strategy: steps
eval_steps: 3
save_strategy: "no"
logging_steps: 1
use_cpu: true
dataloader_pin_memory: false
"""
COUNT = 16


def write_images(folder: Path) -> list[str]:
    draw, captions = random.Random(0), []
    folder.mkdir()
    for number in range(COUNT):
        noise(draw.randint(1, 60), draw.randint(1, 60), number).save(folder / f"{number:02d}.png")
        captions.append(f"picture number {number}")
    rows = ["file_name,caption", *(f"{number:02d}.png,{text}" for number, text in enumerate(captions))]
    (folder / "metadata.csv").write_text("\n".join(rows))
    return captions


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("naflex") / "images"
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scratch")
    (folder / "quick.yaml").write_text(SCRATCH)
    out = folder / "out"
    assert main([str(folder / "quick.yaml"), "--dataset", str(images), "--output_dir", str(out)]) == 0
    return out


@pytest.fixture
def quick(images, trained, tmp_path) -> list[str]:
    """Words that fine-tune the trained model for three steps."""
    start = ["finetune", "--model_name_or_path", str(trained), "--output_dir", str(tmp_path / "out")]
    sizes = ["--max_steps", "3", "--per_device_train_batch_size", "4", "--save_strategy", "no"]
    return [*start, *sizes, "--use_cpu", "--dataloader_pin_memory", "false", "--dataset", str(images)]


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_a_model_from_scratch_gets_a_processor_of_its_patches(trained):
    processor = AutoProcessor.from_pretrained(trained)
    assert (processor.image_processor.patch_size, processor.image_processor.max_num_patches) == (4, 16)
    inputs = processor(images=[noise(30, 7)], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 16, 48)
    assert (trained / "README.md").is_file()
    assert (trained / "retrieval.png").is_file()


@pytest.mark.parametrize("upscale", [True, False])
def test_finetune_at_five_lengths(quick, trained, tmp_path, images, upscale):
    more = ["--naflex_lengths", "4", "9", "16", "25", "36", "--mini_batch_tokens", "40", "--eval_fraction", "0.25"]
    more += ["--upscale", str(upscale).lower()]
    assert main([*quick, *more, "--dataloader_num_workers", "2", "--save_strategy", "steps", "--save_steps", "1"]) == 0
    out = tmp_path / "out"
    before, after = load_file(trained / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert not torch.equal(before["logit_scale"], after["logit_scale"])
    # the held-out figures are those of the saved model at its processor's budget
    model, processor = SiglipExtModel.from_pretrained(out).eval(), AutoProcessor.from_pretrained(out)
    held_out = json.loads((out / "held_out" / "captions.json").read_text())
    files, captions = zip(*held_out["images"].items())
    pictures = encode_images(model, processor, [out / "held_out" / file for file in files], upscale=upscale)
    texts = encode_texts(model, processor, list(captions))
    recall = np.mean((pictures @ texts.T).argmax(1) == np.arange(len(files)))
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    found = [entry["eval_image_to_text_recall@1"] for entry in history if "eval_image_to_text_recall@1" in entry]
    assert len(files) == COUNT // 4
    assert found[-1] == pytest.approx(recall)
    assert ("were not enlarged" in (out / "README.md").read_text()) != upscale

    again = [*quick[:3], "--output_dir", str(tmp_path / "again"), *quick[5:], *more, "--save_strategy", "steps"]
    resumed = [*again, "--save_steps", "1", "--resume_from_checkpoint", str(out / "checkpoint-2")]
    assert main([*resumed, "--dataloader_num_workers", "0"]) == 0
    assert all(
        torch.equal(value, after[name]) for name, value in load_file(tmp_path / "again" / "model.safetensors").items()
    )


def test_shards(quick, images, tmp_path):
    for shard in range(2):
        members = []
        for number in range(shard, COUNT, 2):
            content = (images / f"{number:02d}.png").read_bytes()
            members += [(f"{number}.png", content), (f"{number}.txt", f"picture number {number}".encode())]
        write_tar(tmp_path / f"{shard}.tar", members)
    words = [*quick[:-1], str(tmp_path / "{0..1}.tar"), "--eval_strategy", "no", "--naflex_lengths", "4", "16", "25"]
    assert main([*words, "--shuffle_buffer", "4", "--mini_batch_tokens", "30", "--logging_steps", "1"]) == 0
    assert len(losses(tmp_path / "out")) == 3


def test_captioning_beside(quick):
    assert main([*quick, "--objectives", '{"captioning": 1.0}', "--captioning.num_hidden_layers", "1"]) == 0


def test_a_locked_naflex_tower_trains_a_new_text_tower_from_its_embeddings(images, trained, tmp_path):
    tower = ["--vision_name_or_path", str(trained), "--dataset", str(images)]
    embeddings = str(tmp_path / "embeddings")
    assert main(["precompute", *tower, "--output_dir", embeddings]) == 0
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = {
        "text_config": json.dumps(text | {"max_position_embeddings": 64}),
        "per_device_train_batch_size": 4,
        "mini_batch_size": 2,
        "max_steps": 3,
        "eval_fraction": 0.25,
        "text_name_or_path": "none",
        "text_length": "none",
        "vocab_size": 300,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    plain = ["siglit", *tower, *words, "--use_cpu", "--dataloader_pin_memory", "false"]
    assert main([*plain, "--image_embeddings", embeddings, "--output_dir", str(tmp_path / "from_embeddings")]) == 0
    assert main([*plain, "--output_dir", str(tmp_path / "from_images")]) == 0
    ours, theirs = (losses(tmp_path / name) for name in ("from_embeddings", "from_images"))
    assert ours == pytest.approx(theirs, abs=1e-4)
    before, after = (load_file(folder / "model.safetensors") for folder in (trained, tmp_path / "from_embeddings"))
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("vision_model."))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--naflex_lengths", "0"], "naflex_lengths are whole numbers of patches, at least 1, got 0"),
        (
            ["--naflex_lengths", "16", "64", "--mini_batch_tokens", "32"],
            "mini_batch_tokens=32 cannot hold one image of 64",
        ),
        (["--mini_batch_tokens", "0"], "mini_batch_tokens must be at least 1"),
        (["--mini_batch_tokens", "15"], "mini_batch_tokens=15 cannot hold one image of 16 patches"),
        (["--mini_batch_tokens", "32", "--mini_batch_size", "2"], "set one of them"),
        (["--halve_batches_at", "17"], "halve_batches_at=17 has no effect: images have at most 16 patches"),
        (
            ["--halve_batches_at", "16", "--per_device_train_batch_size", "3"],
            "needs an even per_device_train_batch_size",
        ),
        (["--halve_batches_at", "16", "--gradient_accumulation_steps", "2"], "unset one of them"),
        (["--objectives", '{"distillation": 0.25}'], "distillation is not for NaFlex towers"),
        (["--objectives", '{"masking": 0.25}'], "masking is not for NaFlex towers"),
        (["--image_size", "32"], "NaFlex takes images of any size"),
    ],
)
def test_one_sentence_says_what_is_wrong(quick, refused, words, reason):
    refused([*quick, *words], reason)


def test_another_processor_is_refused(quick, trained, tmp_path, refused):
    mixed = tmp_path / "mixed"
    model, processor = SiglipExtModel.from_pretrained(trained), AutoProcessor.from_pretrained(trained)
    model.save_pretrained(mixed)
    square = SiglipExtImageProcessor(size={"height": 16, "width": 16})
    SiglipExtProcessor(square, processor.tokenizer).save_pretrained(mixed)
    refused([*quick, "--model_name_or_path", str(mixed)], "the image tower is NaFlex, and the processor")


def test_a_fixed_model_has_no_lengths(quick, processor, our_model, tmp_path, refused):
    our_model.save_pretrained(tmp_path / "fixed")
    processor.save_pretrained(tmp_path / "fixed")
    start = [*quick, "--model_name_or_path", str(tmp_path / "fixed")]
    refused([*start, "--naflex_lengths", "16"], "naflex_lengths needs a NaFlex model")
    refused([*start, "--mini_batch_tokens", "16"], "mini_batch_tokens counts patches of NaFlex")
    refused([*start, "--halve_batches_at", "16"], "halve_batches_at counts patches of NaFlex")
