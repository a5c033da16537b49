"""A Hub on loopback, and small folders of every kind that a card is written for."""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import BertConfig, BertTokenizer

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtNaflexImageProcessor,
    SiglipExtProcessor,
    SiglipExtVisionConfig,
    SiglipExtVisionModel,
    train_tokenizer,
)
from modeling_siglip_ext.hub.card import Card, write_card
from modeling_siglip_ext.hub.facts import facts_of
from support.models import TINY
from support.processes import HUB_SERVER, server
from support.tokenizers import gemma_like


TOKEN = "hf_test"
WORDS = ["this is a photo of a cat dog bicycle."]
# what cards differ in: stock form, NaFlex, texts of another length, LiT's BERT, image towers with and without pooling
KINDS = ("stock", "naflex", "short", "bert", "image", "patches")


class HubProcess:
    """The server of `tests/support/hub_server.py` in a process of its own."""

    def __init__(self, folder: Path, address: str):
        self.folder, self.address = folder, address

    def control(self, **order) -> None:
        request = urllib.request.Request(f"{self.address}/-/control", json.dumps(order).encode(), method="POST")
        urllib.request.urlopen(request, timeout=30).read()

    def log(self) -> list[dict]:
        return json.loads(urllib.request.urlopen(f"{self.address}/-/log", timeout=30).read())

    def calls(self) -> list[str]:
        return [f"{entry['method']} {entry['path']}" for entry in self.log()]

    def files(self, name: str) -> dict[str, bytes]:
        """The newest files of a repository, but for the Hub's own."""
        folder = self.folder / name
        found = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        return {path: content for path, content in found.items() if path != ".gitattributes"}


@pytest.fixture(scope="session")
def hub_process(tmp_path_factory) -> Iterator[HubProcess]:
    folder = tmp_path_factory.mktemp("hub") / "files"
    with server(HUB_SERVER, folder, "--lfs") as address:
        yield HubProcess(folder, address)


@pytest.fixture
def hub(hub_process, monkeypatch) -> HubProcess:
    """The Hub of this process, empty: huggingface_hub talks to it, with a token that may write."""
    hub_process.control(reset=True)
    monkeypatch.setattr(constants, "ENDPOINT", hub_process.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub_process


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Nobody waits; how long they would have."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def build(kind: str, folder: Path) -> None:
    """A small model of a kind with its processor and card."""
    torch.manual_seed(0)
    square = SiglipExtImageProcessor(size={"height": 32, "width": 32})
    vision = {**TINY, "image_size": 32, "patch_size": 8}
    if kind in ("image", "patches"):
        pooling = {"image": "map", "patches": "none"}[kind]
        SiglipExtVisionModel(SiglipExtVisionConfig(**vision, pooling=pooling, projection_size=24)).save_pretrained(
            folder
        )
        square.save_pretrained(folder)
    elif kind == "bert":
        words = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[0].split()])}
        tokenizer = BertTokenizer(vocab=words, model_max_length=16)
        text = BertConfig(**TINY, vocab_size=len(words), max_position_embeddings=512)
        config = SiglipExtConfig(
            vision_config=SiglipExtVisionConfig(**vision, pooling="cls"),
            text_config=text,
            text_pooling="first",
            text_projection_size=32,
            loss_type="softmax",
            logit_bias_init=None,
        )
        SiglipExtModel(config).save_pretrained(folder)
        SiglipExtProcessor(square, tokenizer).save_pretrained(folder)
    else:
        length = 16 if kind == "short" else 64
        # a NaFlex model stays in stock form with a tokenizer like the released ones' only
        tokenizer = gemma_like(WORDS, length) if kind == "naflex" else train_tokenizer(WORDS, 300, length)
        text = {**TINY, "vocab_size": len(tokenizer), "max_position_embeddings": length}
        images = square
        if kind == "naflex":
            vision = {**TINY, "patch_size": 16, "num_patches": 16, "naflex": True}
            images = SiglipExtNaflexImageProcessor(patch_size=16, max_num_patches=256)
        SiglipExtModel(SiglipExtConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
        SiglipExtProcessor(images, tokenizer).save_pretrained(folder)
    write_card(
        folder,
        Card(name=kind, summary="A small model.", facts=facts_of(folder), limits="Random.", license="apache-2.0"),
    )


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a kind; made once, not to be changed."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("models") / kind
            build(kind, made[kind])
        return made[kind]

    return get


@pytest.fixture
def model(stand_in, tmp_path) -> Path:
    """A folder of its own in stock form, with its weights in several files."""
    folder = tmp_path / "model"
    build("stock", folder)
    whole = SiglipExtModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    whole.save_pretrained(folder, max_shard_size="40KB")
    return folder
