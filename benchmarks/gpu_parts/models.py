"""Models and inputs of the sizes that are measured, and what they compute."""

from functools import lru_cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel

from .setting import Bench


TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
B16, SO400M_14 = "B/16-224", "So400m/14-224"
VARIANTS = ("eager", "layers compiled", "compiled")


def config_of(name: str, tiny: bool) -> SiglipExtConfig:
    """Both towers have the model's width; texts have 64 tokens."""
    if tiny:
        return SiglipExtConfig(
            vision_config={**TINY, "image_size": 32, "patch_size": 16},
            text_config={**TINY, "vocab_size": 512, "max_position_embeddings": 16},
        )
    if name == B16:
        return SiglipExtConfig()
    return SiglipExtConfig(vision_config={**SO400M, "image_size": 224, "patch_size": 14}, text_config=SO400M)


def make_model(bench: Bench, name: str) -> SiglipExtModel:
    """Random weights in float32, made on the device."""
    torch.manual_seed(0)
    with bench.device:
        return SiglipExtModel(config_of(name, bench.tiny))


def make_batch(bench: Bench, name: str, pairs: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Pixels (float, or uint8 if asked for) and full-length texts, on the device."""
    config, device = config_of(name, bench.tiny), bench.device
    shape = pairs, 3, config.vision_config.image_size, config.vision_config.image_size
    text = config.text_config
    if dtype == torch.uint8:
        pixels = torch.randint(256, shape, dtype=dtype, device=device)
    else:
        pixels = torch.randn(shape, device=device, dtype=dtype)
    return {
        "pixel_values": pixels,
        "input_ids": torch.randint(text.vocab_size, (pairs, text.max_position_embeddings), device=device),
    }


def compile_layers(bench: Bench, model: nn.Module) -> nn.Module:
    """Compile one layer of each tower, which serves all of them: seconds where the whole model takes minutes."""
    for tower in (model.vision_model, model.text_model):
        for layer in tower.encoder.layers:
            layer.compile(dynamic=False, backend="eager" if bench.tiny else "inductor")
    return model


@lru_cache(maxsize=8)
def forward_flops(name: str, tiny: bool, part: str = "pair") -> int:
    """Floating-point operations of the matrix products of one forward: of a pair, an image or a text."""
    config = config_of(name, tiny)
    with torch.device("meta"):
        model = SiglipExtModel(config).eval()
        side, text = config.vision_config.image_size, config.text_config
        pixels = torch.empty(1, 3, side, side)
        ids = torch.empty(1, text.max_position_embeddings, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        if part in ("pair", "image"):
            model.get_image_features(pixel_values=pixels)
        if part in ("pair", "text"):
            model.get_text_features(input_ids=ids)
    return counter.get_total_flops()
