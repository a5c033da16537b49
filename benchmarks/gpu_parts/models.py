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
# Of training, with layers compiled: what could bring it nearer to the peak, and is not what the package does.
BFLOAT16_STREAM, GRAPHS = "residual stream in bfloat16", "CUDA graphs"
TRIALS = (BFLOAT16_STREAM, GRAPHS, f"{BFLOAT16_STREAM}, {GRAPHS}")


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


def compile_layers(bench: Bench, model: nn.Module, mode: str | None = None) -> nn.Module:
    """Compile one layer of each tower, which serves all of them: seconds where the whole model takes minutes."""
    how = {"backend": "eager"} if bench.tiny else {"backend": "inductor", "mode": mode}
    for tower in (model.vision_model, model.text_model):
        for layer in tower.encoder.layers:
            layer.compile(dynamic=False, **how)
    return model


def arrange(bench: Bench, model: nn.Module, variant: str) -> nn.Module:
    """The model as a variant wants it; whole it is compiled by who calls it."""
    if variant.startswith(VARIANTS[1]):
        compile_layers(bench, model, mode="reduce-overhead" if GRAPHS in variant else None)
    if BFLOAT16_STREAM in variant:  # under autocast it would stay in the precision of what goes into the first layer
        for tower in (model.vision_model, model.text_model):
            tower.encoder.register_forward_pre_hook(lambda _, inputs: (inputs[0].bfloat16(), *inputs[1:]))
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
