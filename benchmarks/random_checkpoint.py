"""Files of the catalogue with random weights at full size, laid out as the released ones are as far as that is known.

SigLIP 2 and PaliGemma stack their layers (big_vision's notebooks say `scan=True`); a CLIPPO file is a train state, for
the published one has six bytes a parameter; the three LiT files of google-research/vision_transformer keep a position
for the class token. PaliGemma's language model is one small array: all of it would be 10 to 56 GB that nothing reads.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModel

from modeling_siglip_ext import SiglipExtVisionConfig
from modeling_siglip_ext.conversion.big_vision.names import rules
from modeling_siglip_ext.conversion.containers.npz import NpzWriter
from modeling_siglip_ext.conversion.name_map import array_shapes
from modeling_siglip_ext.conversion.released.catalogue import Entry


STACKED = {"siglip2": frozenset({"img", "txt"}), "paligemma": frozenset({"img"})}
STORED_TYPES = {".bf16": torch.bfloat16, ".b16": torch.bfloat16, ".f16": torch.float16}
NOISE = 1 << 22
SHIFT = 104_729  # a prime: arrays of one shape start at other places of the noise, so that no two are the same

Arrays = dict[str, tuple[tuple[int, ...], torch.dtype]]


def parameter_shapes(entry: Entry) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's arrays in the file, without the container's prefix."""
    config = entry.config()
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    prefix = "vision_model." if isinstance(config, SiglipExtVisionConfig) else ""
    shapes = {prefix + name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return array_shapes(rules(config, STACKED.get(entry.family, frozenset())), shapes)


def file_arrays(entry: Entry) -> Arrays:
    """Names, shapes and types of all arrays of a file."""
    shapes = parameter_shapes(entry)
    dtype = STORED_TYPES.get(Path(entry.name).suffix, torch.float32)
    if entry.family == "clippo":
        shapes["t"] = (1,)
    if entry.family == "paligemma":
        shapes["llm/final_norm/scale"] = (entry.projection_size,)
    if entry.family == "lit":
        if entry.name != "coco_B16B":
            _, rows, width = shapes.pop("img/pos_embedding")
            shapes["img/Transformer/posembed_input/pos_embedding"] = (1, rows + 1, width)
        return {name: (shape, dtype) for name, shape in shapes.items()}
    arrays = {f"params/{name}": (shape, dtype) for name, shape in shapes.items()}
    if entry.family == "clippo":
        arrays |= {f"opt/1/0/{name}": (shape, torch.bfloat16) for name, shape in shapes.items()}
    return arrays


def blocks(noise: torch.Tensor, size: int, start: int) -> Iterator[torch.Tensor]:
    """So many numbers of the noise, which is repeated; from a place of it on."""
    while size > 0:
        block = noise[start : start + size]
        yield block
        size, start = size - len(block), 0


def write_random(entry: Entry, path: Path) -> int:
    """Write the file, one block at a time; returns the bytes of its largest array."""
    noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(0))
    noises = {dtype: noise.to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    arrays = file_arrays(entry)
    with NpzWriter(path) as writer:
        for number, (name, (shape, dtype)) in enumerate(arrays.items()):
            size = torch.Size(shape).numel()
            writer.write(name, shape, dtype, blocks(noises[dtype], size, number * SHIFT % NOISE))
    return max(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in arrays.values())
