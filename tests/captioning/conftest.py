"""A small decoder of which no parameter is trivial, and tokens of images for it."""

import pytest
import torch

from modeling_siglip_ext.captioning import CaptionDecoder, CaptionDecoderConfig


WORDS, LENGTH, WIDTH = 30, 9, 12


@pytest.fixture
def config() -> CaptionDecoderConfig:
    return CaptionDecoderConfig(WORDS, 16, 20, 2, 2, encoder_hidden_size=WIDTH, max_length=LENGTH, bias=True)


@pytest.fixture
def decoder(config) -> CaptionDecoder:
    decoder = CaptionDecoder(config).double().eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return decoder


@pytest.fixture
def encoded() -> torch.Tensor:
    return torch.randn(5, 7, WIDTH, dtype=torch.float64)
