"""What several test files share: small configurations, and a quiet, single-threaded torch."""

import os

import pytest
import torch

from modeling_siglip_ext import SiglipExtConfig


# A process of a test that crashes says where.
os.environ.setdefault("PYTHONFAULTHANDLER", "1")

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors gain nothing from threads, and two test processes would fight for the cores."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_config() -> SiglipExtConfig:
    return SiglipExtConfig(
        text_config={**TINY, "vocab_size": 99, "max_position_embeddings": 8},
        vision_config={**TINY, "image_size": 32, "patch_size": 8},
    )
