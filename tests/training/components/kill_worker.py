"""Train a tiny model, kill the training process again and again, resume it each time, and keep what came out.

Usage: kill_worker.py OUTPUT_FOLDER KILLS SEED KIND [KIND ...]

Each attempt is a fork of this process, which has imported everything. Half of the kills come at a random moment, the
other half while a checkpoint is being written. `OUTPUT_FOLDER/map/whole` is the run that nobody kills, `.../killed`
the other; `OUTPUT_FOLDER/stream/` has the same of a stream, `OUTPUT_FOLDER/naflex/` of a stream for a NaFlex model,
with a length drawn for each batch.
"""

import hashlib
import io
import os
import random
import signal
import sys
import tarfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtNaflexImageProcessor,
    SiglipExtProcessor,
    train_tokenizer,
)
from modeling_siglip_ext.training import (
    ImageTextCollator,
    ImageTextDataset,
    SiglipExtTrainer,
)
from modeling_siglip_ext.training.components.checkpoint import PARTIAL
from modeling_siglip_ext.training.data.streaming import ImageTextStream
from modeling_siglip_ext.training.data.tar_shards import TarShards
from support.images import colour
from support.workers import RESUMED, quick_arguments, recording


ROWS, STEPS = 83, 24
CALLS = {"in a checkpoint": 85_000, "any moment": 300_000}  # of some 90,000 in a checkpoint, 1.3 million in all


def captions(number: int) -> list[str]:
    return [f"colour number {number}", f"a patch of colour {number % 10}"]


def write_shards(folder: Path) -> None:
    folder.mkdir()
    for shard in range(3):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for number in range(shard, ROWS, 3):
                encoded = io.BytesIO()
                colour(number).save(encoded, "PNG")
                # One of them is broken, and skipped alike in every run.
                content = b"no image" if number == 40 else encoded.getvalue()
                for name, data in ((f"{number:03d}.png", content), (f"{number:03d}.txt", "\n".join(captions(number)))):
                    data = data.encode() if isinstance(data, str) else data
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def digest(_: SiglipExtTrainer, inputs: dict) -> str:
    content = inputs["input_ids"].numpy().tobytes() + inputs["pixel_values"].numpy().tobytes()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


class Recorder(recording(digest)):
    """Puts a digest of the last batch into the logs."""

    def log(self, logs, *args, **kwargs):
        if "loss" in logs:
            logs["batch"] = self.batches[-1]
        super().log(logs, *args, **kwargs)


class Killer(TrainerCallback):
    """Kills its process at one of the calls of functions that follow the beginning of training or of a checkpoint.

    Counted, not timed: where a kill hits does not depend on how busy the machine is.
    """

    def __init__(self, where: str, call: int):
        self.where, self.left = where, call

    def on_train_begin(self, args, state, control, **kwargs):
        if self.where == "any moment":
            sys.setprofile(self.count)
        else:
            sys.addaudithook(self.checkpoint_begins)

    def checkpoint_begins(self, event: str, arguments: tuple) -> None:
        if event == "os.mkdir" and PARTIAL in str(arguments[0]):
            sys.setprofile(self.count)

    def count(self, frame, event: str, argument) -> None:
        self.left -= event in ("call", "c_call")
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def train(output: Path, shards: Path, kind: str, callbacks: list[TrainerCallback]) -> None:
    torch.manual_seed(0)
    texts = [text for number in range(ROWS) for text in captions(number)]
    tokenizer = train_tokenizer(texts, vocab_size=300, max_length=12)
    naflex = kind == "naflex"
    square = SiglipExtImageProcessor(size={"height": 16, "width": 16})
    images = SiglipExtNaflexImageProcessor(patch_size=8, max_num_patches=4) if naflex else square
    processor = SiglipExtProcessor(images, tokenizer)
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = {"naflex": True, "num_patches": 4} if naflex else {"image_size": 16}
    config = SiglipExtConfig(
        vision_config={**width, "patch_size": 8, "attention_dropout": 0.2, **shape},
        text_config={**width, "vocab_size": len(tokenizer), "max_position_embeddings": 12, "attention_dropout": 0.2},
    )
    if kind != "map":
        source, lengths = TarShards(str(shards / "{0..2}.tar")), [2, 4, 9] if naflex else None
        data = ImageTextStream(source, image_processor=images, naflex_lengths=lengths, shuffle_buffer=20)
    else:
        rows = {"image": [colour(n) for n in range(ROWS)], "caption": [captions(n) for n in range(ROWS)]}
        data = ImageTextDataset(Dataset.from_dict(rows), image_processor=processor.image_processor)
    chunks = {"mini_batch_tokens": 16} if naflex else {"mini_batch_size": 4}
    trainer = Recorder(
        model=SiglipExtModel(config),
        args=quick_arguments(output, 8, max_steps=STEPS, **chunks, **RESUMED),
        train_dataset=data,
        data_collator=ImageTextCollator(processor, uint8=True),
        processing_class=processor,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(output)) if output.is_dir() else None)


def attempt(output: Path, shards: Path, kind: str, callbacks: list[TrainerCallback]) -> bool:
    """One process; True if it came to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(output, shards, kind, callbacks)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        sys.exit("training failed by itself")
    return os.WIFEXITED(status)


def main(folder: Path, kills: int, seed: int, kinds: list[str]) -> None:
    torch.set_num_threads(1)
    draw, shards = random.Random(seed), folder / "shards"
    write_shards(shards)
    for kind in kinds:
        whole, killed, done = folder / kind / "whole", folder / kind / "killed", False
        attempt(whole, shards, kind, [])
        for number in range(kills):
            where = ("in a checkpoint", "any moment")[number % 2]
            done = done or attempt(killed, shards, kind, [Killer(where, draw.randrange(CALLS[where]))])
            checkpoints = sorted(path.name for path in killed.glob("checkpoint*"))
            print(f"{kind}, kill {number + 1}: {'came too late' if done else ' '.join(checkpoints)}")
        if not done:
            attempt(killed, shards, kind, [])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
