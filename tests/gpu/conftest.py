"""Tests on a GPU against the same on a CPU, or against float64; skipped where there is no GPU.

TEST_DEVICE=cpu runs them on a CPU, to try the tests themselves.
"""

import os

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel, SiglipExtProcessor
from support.models import TINY, make_processor


DEVICE = os.environ.get("TEST_DEVICE", "cuda")


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker("gpu")
    item.add_marker(pytest.mark.filterwarnings("default"))  # what torch says of a card depends on the card


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return torch.device(DEVICE)


@pytest.fixture(scope="session")
def rows() -> Dataset:
    """32 images and their captions."""
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(32)]
    return Dataset.from_dict({"image": images, "caption": [f"picture {number} of noise" for number in range(32)]})


@pytest.fixture(scope="session")
def processor(rows) -> SiglipExtProcessor:
    return make_processor(list(rows["caption"]), length=64, size=16)


@pytest.fixture
def model(processor) -> SiglipExtModel:
    tokens = {"vocab_size": len(processor.tokenizer), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    vision = {**TINY, "image_size": 16, "patch_size": 4}
    model = SiglipExtModel(SiglipExtConfig(vision_config=vision, text_config={**TINY, **tokens}))
    with torch.no_grad():  # so that scores differ clearly
        model.logit_scale.fill_(3.0)
        model.logit_bias.fill_(-1.0)
    return model
