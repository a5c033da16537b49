"""The containers and older layouts that big_vision's own loader accepts, brought into the present one."""

import base64
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from ..containers.arrays import DTYPES, Arrays, LazyArray
from ..errors import CheckpointError
from ..model_folder.report import NAME
from .names import ATTENTION


IMAGE_POSITIONS = "img/pos_embedding"
TOKEN = "img/cls"
TOKEN_POSITION = "img/cls position"  # not a name of any file: the first row of a table of k² + 1 positions
TEXT_POSITIONS = "txt/pos_embedding"
INNER_TEXT_POSITIONS = "txt/Encoder_0/pos_embedding"
KEPT_TYPES = {**DTYPES, "float64": torch.float64}
PREFIXES = ("params/", "opt/target/", "")  # beside an optimiser's state, inside one, or bare


@dataclass(frozen=True)
class Layout:
    """How arrays are called and stored, and what no class has a place for; the usual way unless said.

    Args:
        kind: In a report, the format.
        prefix: Of all names.
        stacked: Towers, "img" and "txt", whose layers are stacked.
        dtype: Of most arrays; None for that of the tensors.
        dtypes: Of the others.
        text_head: Whether there is a text head.
        bias: Whether there is a logit bias.
        beside: Small arrays that are kept as they are, see `pack`.
        legacy: See `describe_legacy`.
    """

    kind: str = "big_vision"
    prefix: str = "params/"
    stacked: list[str] = field(default_factory=list)
    dtype: str | None = None
    dtypes: dict[str, str] = field(default_factory=dict)
    text_head: bool = True
    bias: bool = True
    beside: dict[str, Any] = field(default_factory=dict)
    legacy: dict[str, Any] | None = None


def stored_layout(stored: Mapping[str, Any]) -> Layout:
    """The layout that a report keeps; the usual one where the report is of another format.

    Raises:
        CheckpointError: The report says it in another form than `from-jax` does.
    """
    usual = Layout()
    if stored.get("kind") != usual.kind:
        return usual
    optional = {"dtype": (str, type(None)), "legacy": (dict, type(None))}
    known = {entry.name: stored[entry.name] for entry in fields(Layout) if entry.name in stored}
    damaged = [
        key for key, value in known.items() if not isinstance(value, optional.get(key, type(getattr(usual, key))))
    ]
    if not damaged:
        words = {"stacked": known.get("stacked", []), "dtypes": list(known.get("dtypes", {}).values())}
        damaged = [key for key, found in words.items() if not all(isinstance(word, str) for word in found)]
    legacy = known.get("legacy")
    if isinstance(legacy, dict):
        damaged += [f"legacy {key}" for key in ("names", "kept") if not isinstance(legacy.get(key), dict)]
    if damaged:
        raise CheckpointError(f"{NAME} is damaged: layout, {', '.join(damaged)}")
    return Layout(**known)


def container_prefix(arrays: Arrays) -> str:
    """What the model's parameters are called by; optimisers repeat the names behind it."""
    return next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in arrays)), "")


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


def modern_name(name: str) -> str:
    for pattern, replacement in LEGACY_NAMES:
        name = pattern.sub(replacement, name)
    return name


def has_token_position(renamed: Arrays) -> bool:
    """Whether the position table has k² + 1 rows: the first belongs to the class token."""
    positions = renamed.get(IMAGE_POSITIONS)
    if positions is None or TOKEN not in renamed or len(positions.shape) != 3:
        return False
    return not is_square(positions.shape[1]) and is_square(positions.shape[1] - 1)


def modern(params: Arrays) -> dict[str, LazyArray]:
    """The parameters under today's names, with the sums that big_vision's own loader takes."""
    renamed = {modern_name(name): array for name, array in params.items()}
    if has_token_position(renamed):
        positions, token = renamed[IMAGE_POSITIONS], renamed[TOKEN]
        shape = (1, positions.shape[1] - 1, positions.shape[2])
        renamed[TOKEN] = LazyArray(token.shape, lambda: token.load() + positions.load()[:, :1], token.dtype)
        renamed[IMAGE_POSITIONS] = LazyArray(shape, lambda: positions.load()[:, 1:], positions.dtype)
    inner, outer = renamed.pop(INNER_TEXT_POSITIONS, None), renamed.get(TEXT_POSITIONS)
    if inner is not None and outer is not None:
        renamed[TEXT_POSITIONS] = LazyArray(inner.shape, lambda: outer.load() + inner.load(), inner.dtype)
    elif inner is not None:
        renamed[TEXT_POSITIONS] = inner
    return renamed


def pack(tensor: torch.Tensor) -> dict[str, Any]:
    data = base64.b64encode(tensor.contiguous().view(torch.uint8).numpy().tobytes()).decode()
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "data": data}


def unpack(stored: dict[str, Any]) -> torch.Tensor:
    try:
        data = torch.frombuffer(bytearray(base64.b64decode(stored["data"], validate=True)), dtype=torch.uint8)
        return data.view(KEPT_TYPES[stored["dtype"]]).reshape(stored["shape"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"an array that {NAME} keeps is damaged: {error}") from error


def describe_legacy(params: Arrays) -> dict[str, Any] | None:
    """What the way back to an older layout needs: the old names, and the small arrays that were added up.

    None where the layout is today's.
    """
    names = {modern_name(name): name for name in params if modern_name(name) != name}
    kept = {}
    renamed = {modern_name(name): array for name, array in params.items()}
    if has_token_position(renamed):
        kept[TOKEN] = pack(renamed[TOKEN].load())
        kept[TOKEN_POSITION] = pack(renamed[IMAGE_POSITIONS].load()[:, :1])
    for name in (INNER_TEXT_POSITIONS, TEXT_POSITIONS):
        if INNER_TEXT_POSITIONS in params and name in params:
            kept[name] = pack(params[name].load())
    return {"names": names, "kept": kept} if names or kept else None


@dataclass(frozen=True)
class Outgoing:
    """An array to be written: its shape and type, and what gives its values, in blocks."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Callable[[], Iterable[torch.Tensor]]


def outgoing(tensor: torch.Tensor) -> Outgoing:
    return Outgoing(tuple(tensor.shape), tensor.dtype, lambda: [tensor])


def is_sum(array: Outgoing, parts: list[torch.Tensor]) -> bool:
    (block,) = array.blocks()
    return torch.equal(block.float(), sum(parts[1:], parts[0]).float())


def restore_legacy(arrays: dict[str, Outgoing], legacy: dict[str, Any] | None) -> dict[str, Outgoing]:
    """Today's arrays under the names of an older layout, with the sums undone.

    Args:
        legacy: What `describe_legacy` found.

    Returns:
        The arrays of the older layout; today's where a sum is not what it was (a model that was trained since).
    """
    if legacy is None:
        return arrays
    kept = {name: unpack(stored) for name, stored in legacy["kept"].items()}
    restored = dict(arrays)
    if TOKEN_POSITION in kept:
        if not is_sum(arrays[TOKEN], [kept[TOKEN], kept[TOKEN_POSITION]]):
            return arrays
        first, grid = kept.pop(TOKEN_POSITION), arrays[IMAGE_POSITIONS]
        shape = (1, grid.shape[1] + 1, grid.shape[2])
        restored[IMAGE_POSITIONS] = Outgoing(shape, grid.dtype, lambda: [first, *grid.blocks()])
    texts = [kept[name] for name in (TEXT_POSITIONS, INNER_TEXT_POSITIONS) if name in kept]
    if texts:
        if not is_sum(arrays[TEXT_POSITIONS], texts):
            return arrays
        del restored[TEXT_POSITIONS]
    restored |= {name: outgoing(tensor) for name, tensor in kept.items()}
    return {legacy["names"].get(name, name): array for name, array in restored.items()}


def stacked_towers(params: Arrays) -> frozenset[str]:
    """The towers, "img" and "txt", whose layers are stacked along a leading axis."""
    return frozenset(name[:3] for name in params if re.match(r"(img|txt)/.*encoderblock/", name))
