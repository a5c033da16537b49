"""Fine-tuning on a device: LoRA by our Trainer, and `siglip-ext-train finetune` end to end from JPEGs on disk."""

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from modeling_siglip_ext import SiglipExtImageProcessor, SiglipExtProcessor, train_tokenizer
from modeling_siglip_ext.training import SiglipExtTrainer, SiglipExtTrainingArguments
from training import RandomPairs, Uint8, training_arguments

from .models import B16, config_of, forward_flops, make_model
from .setting import Bench, Figures, Item, first_that_fits


BATCHES = (256, 128)
STEPS, LOGGED = 40, 5
FILES, SIDES = 4096, (400, 300)


def speed(history: list[dict]) -> float:
    """Examples a second: the median over the logged stretches but the first two, in which everything starts."""
    rates = [entry["examples_per_second"] for entry in history if "examples_per_second" in entry]
    return statistics.median(rates[2:] or rates)


def settings(bench: Bench) -> dict[str, object]:
    """As a user would set a device of its own to work."""
    return {
        "use_cpu": not bench.on_cuda,
        "bf16": True,
        "logging_steps": 1 if bench.tiny else LOGGED,
        "max_steps": 4 if bench.tiny else STEPS,
        "dataloader_num_workers": workers(bench),
        "dataloader_pin_memory": bench.on_cuda,
    }


def workers(bench: Bench) -> int:
    return 2 if bench.tiny else min(16, os.cpu_count() or 1)


def measure_lora(bench: Bench) -> Figures:
    """Rank 16 on all linear maps, the loss head trained as well; images are bytes that the workers make."""

    def run(pairs: int) -> Figures:
        config = config_of(B16, bench.tiny)
        adapter = LoraConfig(r=16, target_modules="all-linear", modules_to_save=["logit_scale", "logit_bias"])
        side = config.vision_config.image_size
        collator = Uint8(SiglipExtImageProcessor(size={"height": side, "width": side}))
        with tempfile.TemporaryDirectory() as folder:
            arguments = training_arguments(SiglipExtTrainingArguments, pairs, folder, **settings(bench))
            trainer = SiglipExtTrainer(
                model=get_peft_model(make_model(bench, B16), adapter),
                args=arguments,
                train_dataset=RandomPairs(config, 1_000_000, "uint8"),
                data_collator=collator,
            )
            trainer.train()
        rate = speed(trainer.state.log_history)
        # one forward, and the gradients of activations but not of the weights
        return {"batch": pairs, "pairs/s": rate, "steps/s": rate / pairs} | bench.shares(
            rate * 2 * forward_flops(B16, bench.tiny)
        )

    return first_that_fits(bench, (8,) if bench.tiny else BATCHES, run)


# ---- end to end


def draw(path: Path, seed: int) -> None:
    """A smooth random picture with noise, which compresses about as a photograph does."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (15, 20, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize(SIDES, Image.Resampling.BICUBIC), dtype=np.int16)
    noise = generator.integers(-10, 11, picture.shape, dtype=np.int16)
    Image.fromarray((picture + noise).clip(0, 255).astype(np.uint8)).save(path, quality=85)


def write_images(folder: Path, rows: int, files: int) -> None:
    """JPEGs and a metadata.csv, in which a file may come several times."""
    folder.mkdir()
    with ThreadPoolExecutor() as threads:  # what takes long leaves Python's lock
        list(threads.map(draw, (folder / f"{number}.jpg" for number in range(files)), range(files)))
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        writer.writerows([f"{row % files}.jpg", f"picture number {row}, with spots"] for row in range(rows))


def write_model(bench: Bench, folder: Path) -> None:
    captions = [f"picture number {row}, with spots" for row in range(500)]
    config = config_of(B16, bench.tiny)
    length, side = config.text_config.max_position_embeddings, config.vision_config.image_size
    tokenizer = train_tokenizer(captions, vocab_size=120, max_length=length)
    make_model(bench, B16).save_pretrained(folder)
    image_processor = SiglipExtImageProcessor(size={"height": side, "width": side})
    SiglipExtProcessor(image_processor, tokenizer).save_pretrained(folder)


def measure_command(bench: Bench) -> Figures:
    """`siglip-ext-train finetune` from JPEGs of 400 x 300: reading, towers, optimiser, logging, as its log has it."""

    def run(pairs: int) -> Figures:
        given = settings(bench)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            rows = pairs * (int(str(given["max_steps"])) + 2)
            write_images(folder / "images", rows, min(rows, FILES))
            write_model(bench, folder / "model")
            words = {
                **given,
                "dataset": folder / "images",
                "model_name_or_path": folder / "model",
                "output_dir": folder / "run",
                "per_device_train_batch_size": pairs,
                "eval_fraction": 0,
                "eval_strategy": "no",
                "save_strategy": "no",
                "cache_gib": 0,
                "disable_tqdm": True,
            }
            options = [word for key, value in words.items() for word in (f"--{key}", str(value))]
            command = [sys.executable, "-m", "modeling_siglip_ext.training", "finetune", *options]
            bench.free()
            offline = os.environ | {"HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=offline, cwd=folder)
            if "OutOfMemoryError" in done.stderr:
                raise torch.OutOfMemoryError("siglip-ext-train finetune")
            if done.returncode:
                raise RuntimeError(done.stderr[-1500:])
            history = json.loads((folder / "run" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        return {"batch": pairs, "images/s": speed(history), "workers": workers(bench)}

    return first_that_fits(bench, (8,) if bench.tiny else BATCHES, run)


def finetune(bench: Bench) -> Iterator[Item]:
    yield Item(f"LoRA, {B16}, Trainer", partial(measure_lora, bench))
    yield Item(f"siglip-ext-train finetune, {B16}, from JPEGs", partial(measure_command, bench))
