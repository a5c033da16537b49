"""What training costs: a step against stock Trainer and a plain loop, the gradient cache, LiT from embeddings.

    python benchmarks/training.py                     # everything, some twenty minutes on two cores
    python benchmarks/training.py stock cache         # parts of it; the others keep their lines in the table

Times are medians of 12 or 20 alternating pairs with 95 % intervals (`timing.py`). A step of a Trainer is all that
happens between two calls of `on_step_begin`: loading, forward, backward, clipping, optimiser, logging. Memory is
anonymous memory (RssAnon) of a process of its own. Results are kept in benchmarks/results/training.json; the table
beside it is drawn from that.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from datasets import Dataset as Rows
from PIL import Image
from report import RESULTS, publish, store, stored, table, versions
from timing import Ratio, alternate
from torch.utils.data import Dataset
from transformers import (
    BaseImageProcessor,
    PrinterCallback,
    SiglipModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtNaflexImageProcessor,
    native_config,
    sigmoid_loss,
)
from modeling_siglip_ext.training import ImageTextDataset, SiglipExtTrainer, SiglipExtTrainingArguments
from modeling_siglip_ext.training.components.embedding_tower import EmbeddingTower
from modeling_siglip_ext.training.components.grad_cache import cached_backward, split_batch
from modeling_siglip_ext.training.data.pixels import batch_of_samples


PAIRS = {"step": 2, "length": 4, "cache": 64, "lit": 256, "step memory": 8, "memory": 32_768}


class RandomPairs(Dataset):
    """Random images (uint8 or float) or embeddings and random texts of a dual model's sizes."""

    def __init__(self, config: SiglipExtConfig, size: int, kind: str):
        text, side = config.text_config, config.vision_config.image_size
        self.texts = torch.randint(text.vocab_size, (512, text.max_position_embeddings))
        self.shape = (side and 3, side, side) if kind != "embedding" else (config.text_config.projection_size,)
        self.size, self.kind = size, kind

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, indices: list[int]) -> dict:
        """A whole batch, as the collator of a real dataset makes it."""
        shape = (len(indices), *self.shape)
        images = torch.randint(256, shape, dtype=torch.uint8) if self.kind == "uint8" else torch.randn(shape)
        texts = self.texts[torch.tensor(indices) % 512]
        return {"pixel_values": images, "input_ids": texts, "return_loss": True}


def training_arguments(kind: type, batch: int, folder: str, **settings) -> TrainingArguments:
    usual = {
        "output_dir": folder,
        "per_device_train_batch_size": batch,
        "max_steps": 1_000_000,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }
    return kind(**usual | settings)


class StepByStep(TrainerCallback):
    """Runs a Trainer in a thread, one step each time it is called."""

    def __init__(self, trainer: Trainer):
        self.go, self.done, self.stopping = threading.Event(), threading.Event(), False
        trainer.add_callback(self)
        trainer.remove_callback(PrinterCallback)
        self.thread = threading.Thread(target=trainer.train, daemon=True)
        self.thread.start()
        self.done.wait()

    def on_step_begin(self, args, state, control, **kwargs):
        self.done.set()
        self.go.wait()
        self.go.clear()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = self.stopping

    def __call__(self) -> None:
        self.done.clear()
        self.go.set()
        self.done.wait()

    def stop(self) -> None:
        self.stopping = True
        self.go.set()
        self.thread.join()


class Uint8:
    """A collator that has nothing to do, and knows how the Trainer normalises images."""

    def __init__(self, image_processor: BaseImageProcessor):
        self.processor = SimpleNamespace(image_processor=image_processor)

    def __call__(self, batch: dict) -> dict:
        return batch


class Resized(Uint8):
    """Of samples of images, with random texts."""

    def __call__(self, batch: list[dict]) -> dict:
        texts = torch.randint(SiglipExtConfig().text_config.vocab_size, (len(batch), 64))
        return batch_of_samples(batch) | {"input_ids": texts, "return_loss": True}


def identity(batch: dict) -> dict:
    return batch


def trainer_of(name: str, batch: int, folder: str) -> Trainer:
    """B/16-224 in our Trainer or in the stock one, each with its own class of model."""
    config = SiglipExtConfig()
    data = RandomPairs(config, 1_000_000, "float")
    if name == "ours":
        args = training_arguments(SiglipExtTrainingArguments, batch, folder)
        return SiglipExtTrainer(model=SiglipExtModel(config), args=args, train_dataset=data, data_collator=identity)
    args = training_arguments(TrainingArguments, batch, folder)
    return Trainer(model=SiglipModel(native_config(config)), args=args, train_dataset=data, data_collator=identity)


def plain_loop(batch: int) -> Callable[[], None]:
    """What the Trainers do, written by hand: the same model, batch, precision, optimiser and clipping."""
    config = SiglipExtConfig()
    model, data = SiglipExtModel(config).train(), RandomPairs(config, 1_000_000, "float")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)

    def step() -> None:
        model(**data.__getitems__(list(range(batch)))).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_stock(folder: str) -> dict[str, Ratio]:
    batch = PAIRS["step"]
    ours, stock = (StepByStep(trainer_of(name, batch, folder)) for name in ("ours", "stock"))
    ratio = alternate(ours, stock, warmup=1)
    ours.stop()
    stock.stop()
    return {f"step, B/16-224, batch {batch}, against stock Trainer and SiglipModel": ratio}


def measure_loop(folder: str) -> dict[str, Ratio]:
    batch = PAIRS["step"]
    ours = StepByStep(trainer_of("ours", batch, folder))
    ratio = alternate(ours, plain_loop(batch), warmup=1)
    ours.stop()
    return {f"step, B/16-224, batch {batch}, against a plain loop": ratio}


def measure_length(folder: str) -> dict[str, Ratio]:
    """A step of NaFlex at one drawn length against one of fixed resolution with as many patches."""
    batch, draw = PAIRS["length"], np.random.default_rng(0)
    found = {}
    for shapes, spread in (("square", 0.0), ("of 1:2 to 2:1", 1.0)):
        sides = [(round(256 * 2**half), round(256 / 2**half)) for half in draw.uniform(-spread / 2, spread / 2, 64)]
        pictures = [Image.fromarray(draw.integers(256, size=(*side, 3), dtype=np.uint8)) for side in sides]
        rows = Rows.from_dict({"image": pictures, "caption": ["a picture"] * len(pictures)})

        def trainer(naflex: bool, rows: Rows = rows) -> StepByStep:
            images: BaseImageProcessor = SiglipExtImageProcessor(size={"height": 256, "width": 256})
            lengths = {}
            if naflex:
                images, lengths = SiglipExtNaflexImageProcessor(patch_size=16), {"naflex_lengths": [256]}
            config = SiglipExtConfig(vision_config={"naflex": True} if naflex else {"image_size": 256})
            args = training_arguments(SiglipExtTrainingArguments, batch, folder)
            data = ImageTextDataset(rows, image_processor=images, **lengths)
            model = SiglipExtModel(config)
            return StepByStep(
                SiglipExtTrainer(model=model, args=args, train_dataset=data, data_collator=Resized(images))
            )

        naflex, fixed = trainer(True), trainer(False)
        name = f"step, B/16, batch {batch}, NaFlex, {shapes}, at 256 patches, against 256 x 256 pixels"
        found[name] = alternate(naflex, fixed, rounds=12, warmup=1)
        naflex.stop()
        fixed.stop()
    return found


def measure_cache(folder: str) -> dict[str, Ratio]:
    """One step by gradient cache against forward and backward of the same chunks, each with its own small loss."""
    width = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6, "num_hidden_layers": 4}
    config = SiglipExtConfig(
        vision_config={**width, "image_size": 128}, text_config={**width, "max_position_embeddings": 32}
    )
    model, count = SiglipExtModel(config).train(), PAIRS["cache"]
    batch = RandomPairs(config, count, "float").__getitems__(list(range(count)))
    del batch["return_loss"]
    chunks = split_batch(batch, 8)

    def plain() -> None:
        for chunk in chunks:
            model(**chunk, return_loss=True).loss.backward()
        model.zero_grad()

    def cached() -> None:
        cached_backward(model, model, chunks, sigmoid_loss)
        model.zero_grad()

    return {f"gradient cache, {count} pairs by 8, against forward + backward of the chunks": alternate(cached, plain)}


def measure_lit(folder: str) -> dict[str, Ratio]:
    """A whole step from embeddings against forward and backward of the text tower alone."""
    width = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6, "num_hidden_layers": 4}
    text = {**width, "max_position_embeddings": 16, "vocab_size": 8000, "projection_size": 768}
    config = SiglipExtConfig(vision_config={}, text_config=text)
    batch, model = PAIRS["lit"], SiglipExtModel(config, vision_model=EmbeddingTower(config.vision_config))
    data = RandomPairs(config, 1_000_000, "embedding")
    args = training_arguments(SiglipExtTrainingArguments, batch, folder, lock_towers=["vision"])
    step = StepByStep(SiglipExtTrainer(model=model, args=args, train_dataset=data, data_collator=identity))
    tower = SiglipExtModel(config, vision_model=EmbeddingTower(config.vision_config)).text_model.train()
    texts = data.texts[:batch]
    weights = torch.randn(batch, 768)

    def bare() -> None:
        (tower(input_ids=texts).pooler_output * weights).sum().backward()
        tower.zero_grad()

    ratio = alternate(step, bare)
    step.stop()
    return {f"LiT step from embeddings, {batch} pairs, against the bare text tower's forward + backward": ratio}


# ---- memory, in a process of its own


def anonymous_bytes() -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


class Peak:
    """The largest anonymous memory while it runs, over what there was before."""

    def __enter__(self) -> "Peak":
        self.before = self.peak = anonymous_bytes()
        self.running = True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, anonymous_bytes())
            time.sleep(0.01)

    def __exit__(self, *exception) -> None:
        self.running = False
        self.thread.join()

    @property
    def growth(self) -> int:
        return self.peak - self.before


def memory_of_step(name: str, folder: str) -> dict[str, float]:
    """Peak anonymous memory over three steps of B/16-224, in MB; the process included.

    With a batch of 2 it would be that of the weights, gradients and moments, and the allocator's luck.
    """
    trainer = trainer_of(name, PAIRS["step memory"], folder)
    trainer.args.max_steps = 3
    with Peak() as peak:
        trainer.train()
    return {"MB": peak.peak / 1e6}


def memory_of_large_batch(folder: str) -> dict[str, float]:
    """Two steps of 32,768 pairs of 64 px by gradient cache, against what must be there."""
    width = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipExtConfig(
        vision_config={**width, "image_size": 64, "patch_size": 16},
        text_config={**width, "max_position_embeddings": 16, "vocab_size": 1000, "projection_size": 64},
    )
    pairs, chunk = PAIRS["memory"], 512
    model = SiglipExtModel(config).train()
    data = RandomPairs(config, 10 * pairs, "uint8")
    one = data.__getitems__(list(range(chunk)))
    pixels = one["pixel_values"].float() / 127.5 - 1
    model(pixel_values=pixels, input_ids=one["input_ids"]).loss.backward()  # libraries, optimiser-sized buffers
    with Peak() as activations:
        model(pixel_values=pixels, input_ids=one["input_ids"]).loss.backward()
    model.zero_grad()
    args = training_arguments(SiglipExtTrainingArguments, pairs, folder, mini_batch_size=chunk)
    args.max_steps = 2
    collator = Uint8(SiglipExtImageProcessor(size={"height": 64, "width": 64}))
    trainer = SiglipExtTrainer(model=model, args=args, train_dataset=data, data_collator=collator)
    start = time.perf_counter()
    with Peak() as peak:
        trainer.train()
    raw, caches = pairs * 3 * 64 * 64, 6 * pairs * 64 * 4
    allowed = raw + activations.growth + caches + 200e6
    return {
        "seconds": time.perf_counter() - start,
        "raw_MB": raw / 1e6,
        "activations_MB": activations.growth / 1e6,
        "caches_MB": caches / 1e6,
        "growth_MB": peak.growth / 1e6,
        "process_MB": peak.peak / 1e6,
        "allowed_MB": allowed / 1e6,
    }


def in_process(*words: str) -> dict[str, float]:
    finished = subprocess.run([sys.executable, __file__, "--one", *words], capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(finished.stderr[-2000:])
    return json.loads(finished.stdout.splitlines()[-1])


def measure_memory(folder: str) -> dict[str, dict[str, float]]:
    batch = PAIRS["step memory"]
    return {
        f"peak memory of a step, B/16-224, batch {batch}, ours": in_process("step", "ours"),
        f"peak memory of a step, B/16-224, batch {batch}, stock": in_process("step", "stock"),
        "gradient cache, 32,768 pairs of 64 px by 512": in_process("large"),
    }


MEASURES = {
    "stock": measure_stock,
    "loop": measure_loop,
    "length": measure_length,
    "cache": measure_cache,
    "lit": measure_lit,
    "memory": measure_memory,
}


def render(results: dict[str, dict]) -> list[str]:
    ratios = {name: Ratio(**found) for name, found in results.items() if "median" in found}
    lines = [
        "# Training",
        "",
        f"{versions(f'{torch.get_num_threads()} threads', 'float32')}. Ratios are ours / the other, medians of 12 or "
        "20 alternating pairs with 95 % intervals.",
        "",
        *table(
            ("what", "ours, s", "other, s", "ratio"),
            [[name, f"{r.seconds_a:.3f}", f"{r.seconds_b:.3f}", str(r)] for name, r in ratios.items()],
        ),
        *("", "Anonymous memory:", ""),
    ]
    for name, found in results.items():
        if "median" not in found:
            figures = ", ".join(f"{key.replace('_', ' ')} {value:.0f}" for key, value in found.items())
            lines.append(f"- {name}: {figures}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*MEASURES, []], help="which measurements; all by default")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.one:
            kind, *rest = args.one
            found = memory_of_step(rest[0], folder) if kind == "step" else memory_of_large_batch(folder)
            print(json.dumps(found))
            return
        path = RESULTS / "training.json"
        results = stored(path)
        for part in args.parts or MEASURES:
            for name, found in MEASURES[part](folder).items():
                results[name] = asdict(found) if isinstance(found, Ratio) else found
                print(name, found, flush=True)
            store(path, results)
            publish(path.with_suffix(".md"), render(results), show=False)


if __name__ == "__main__":
    main()
