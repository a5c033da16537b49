"""Small models, processors and datasets for the tests of this room."""

import re
from collections.abc import Callable

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from transformers import SiglipConfig, SiglipModel

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtProcessor,
    train_tokenizer,
)
from modeling_siglip_ext.training import (
    ImageTextCollator,
    ImageTextDataset,
    SiglipExtTrainer,
    SiglipExtTrainingArguments,
)
from modeling_siglip_ext.training.__main__ import main
from support.models import TINY


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "white": (240, 240, 240)}
SHAPES = ("square", "bar", "column", "frame")
LENGTH = 12


def draw(colour: str, shape: str, size: int = 16) -> Image.Image:
    pixels = np.zeros((size, size, 3), dtype=np.uint8)
    quarter = size // 4
    area = {
        "square": np.s_[quarter:-quarter, quarter:-quarter],
        "bar": np.s_[quarter * 2 - 2 : quarter * 2 + 2, :],
        "column": np.s_[:, quarter * 2 - 2 : quarter * 2 + 2],
        "frame": np.s_[:, :],
    }[shape]
    pixels[area] = COLOURS[colour]
    if shape == "frame":
        pixels[quarter:-quarter, quarter:-quarter] = 0
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def rows() -> Dataset:
    """16 images with one caption each and a second caption column of lists."""
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    return Dataset.from_dict(
        {
            "image": [draw(*pair) for pair in pairs],
            "caption": [f"a {colour} {shape}" for colour, shape in pairs],
            "captions": [
                [f"a {colour} {shape}", f"{shape} in {colour}", f"{colour} {shape}"] for colour, shape in pairs
            ],
        }
    )


@pytest.fixture(scope="session")
def processor(rows) -> SiglipExtProcessor:
    texts = list(rows["caption"]) + [text for texts in rows["captions"] for text in texts]
    tokenizer = train_tokenizer(texts, vocab_size=300, max_length=LENGTH)
    return SiglipExtProcessor(SiglipExtImageProcessor(size={"height": 16, "width": 16}), tokenizer)


def towers(vocab_size: int) -> dict:
    tokens = {"vocab_size": vocab_size, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return {
        "vision_config": {**TINY, "image_size": 16, "patch_size": 4},
        "text_config": {**TINY, **tokens, "max_position_embeddings": LENGTH},
    }


@pytest.fixture
def our_model(processor) -> SiglipExtModel:
    return SiglipExtModel(SiglipExtConfig(**towers(len(processor.tokenizer))))


@pytest.fixture
def stock_model(processor) -> SiglipModel:
    model = SiglipModel(SiglipConfig(**towers(len(processor.tokenizer))))
    model.logit_scale.data.fill_(2.3)
    model.logit_bias.data.fill_(-10.0)
    return model


@pytest.fixture
def arguments(tmp_path):
    """Builds quick CPU arguments."""

    def build(**changes) -> SiglipExtTrainingArguments:
        values = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "learning_rate": 2e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            **changes,
        }
        return SiglipExtTrainingArguments(**values)

    return build


@pytest.fixture
def make(arguments, rows, processor):
    """Builds a Trainer of a model, trained and evaluated on all rows, for some arguments."""

    def build(model, callbacks=None, **changes) -> SiglipExtTrainer:
        dataset = ImageTextDataset(rows, image_processor=processor.image_processor)
        return SiglipExtTrainer(
            model=model,
            args=arguments(**changes),
            train_dataset=dataset,
            eval_dataset=dataset,
            data_collator=ImageTextCollator(processor, uint8=True),
            processing_class=processor,
            callbacks=callbacks,
        )

    return build


@pytest.fixture
def status() -> Callable[[list[str]], int | str | None]:
    """Runs `siglip-ext-train` with some words; gives its exit status."""

    def run(words: list[str]) -> int | str | None:
        try:
            return main(words)
        except SystemExit as end:
            return end.code

    return run


@pytest.fixture
def refused(status, capsys) -> Callable[[list[str], str], None]:
    """Checks that words are refused with exit status 2 and one line that says why."""

    def check(words: list[str], reason: str) -> None:
        capsys.readouterr()
        assert status(words) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("siglip-ext-train: error:")]
        assert len(lines) == 1
        assert re.search(reason, lines[0]), lines[0]

    return check
