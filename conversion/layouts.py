"""The containers and older layouts that big_vision's own loader accepts, brought into the present one."""

import math
import re

from .arrays import Arrays, LazyArray
from .big_vision import ATTENTION


PREFIXES = ("params/", "opt/target/", "")  # beside an optimiser's state, inside one, or bare


def container_prefix(arrays: Arrays) -> str:
    """What the model's parameters are called by; optimisers repeat the names behind it."""
    return next(prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in arrays))


def parameters(arrays: Arrays) -> dict[str, LazyArray]:
    """The model's parameters out of a container."""
    prefix = container_prefix(arrays)
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


LEGACY_NAMES = (
    (re.compile(r"(encoderblock(?:_\d+)?)/MultiHeadDotProductAttention_1/"), rf"\1/{ATTENTION}/"),
    (re.compile(r"(encoderblock(?:_\d+)?)/LayerNorm_2/"), r"\1/LayerNorm_1/"),
    (re.compile(r"(encoderblock(?:_\d+)?)/MlpBlock_3/"), r"\1/MlpBlock_0/"),
    (re.compile(r"^img/Transformer/(?:posembed_input/)?pos_embedding$"), "img/pos_embedding"),
    (re.compile(r"^img/(probe|MultiHeadDotProductAttention_0|MlpBlock_0|LayerNorm_0)(?=/|$)"), r"img/MAPHead_0/\1"),
)


def is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def modern(params: Arrays) -> dict[str, LazyArray]:
    """The parameters under today's names, with the sums that big_vision's own loader takes."""
    renamed = {}
    for name, array in params.items():
        for pattern, replacement in LEGACY_NAMES:
            name = pattern.sub(replacement, name)
        renamed[name] = array
    positions, token = renamed.get("img/pos_embedding"), renamed.get("img/cls")
    if positions is not None and token is not None and not is_square(positions.shape[1]):
        # k² + 1 rows: the first belongs to the class token
        shape = (1, positions.shape[1] - 1, positions.shape[2])
        renamed["img/cls"] = LazyArray(token.shape, lambda: token.load() + positions.load()[:, :1])
        renamed["img/pos_embedding"] = LazyArray(shape, lambda: positions.load()[:, 1:])
    inner, outer = renamed.pop("txt/Encoder_0/pos_embedding", None), renamed.get("txt/pos_embedding")
    if inner is not None:
        both = inner if outer is None else LazyArray(inner.shape, lambda: outer.load() + inner.load())
        renamed["txt/pos_embedding"] = both
    return renamed


def stacked_towers(params: Arrays) -> frozenset[str]:
    """The towers, "img" and "txt", whose layers are stacked along a leading axis."""
    return frozenset(name[:3] for name in params if re.match(r"(img|txt)/.*encoderblock/", name))
