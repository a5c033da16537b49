"""A declarative map between the tensors of two formats, read in both directions from one table of rules."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sizes:
    """What the shapes on the torch side do not tell, needed on the way back."""

    heads: int = 1
    patch_size: int = 1


@dataclass(frozen=True)
class Form:
    """How one array is laid out on either side."""

    to_torch: Callable[[torch.Tensor], torch.Tensor]
    from_torch: Callable[[torch.Tensor, Sizes], torch.Tensor]


@dataclass(frozen=True)
class Slot:
    """Where the other format keeps an array: its name, and the index in it when the layers are stacked there."""

    name: str
    layer: int | None = None


@dataclass(frozen=True)
class Rule:
    """A torch tensor and the array it is made of; of several arrays, their parts joined along the first axis."""

    torch_name: str
    slots: tuple[Slot, ...]
    form: Form
    sizes: Sizes


def to_torch(rules: Iterable[Rule], load: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each torch tensor in turn; `load` reads one array of the other format."""
    for rule in rules:
        parts = []
        for slot in rule.slots:
            array = load(slot.name)
            parts.append(rule.form.to_torch(array if slot.layer is None else array[slot.layer]))
        yield rule.torch_name, (parts[0] if len(parts) == 1 else torch.cat(parts)).contiguous()


def from_torch(rules: Iterable[Rule], tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each array of the other format in turn, the inverse of `to_torch`."""
    parts: dict[str, dict[int | None, tuple[Rule, int]]] = defaultdict(dict)
    for rule in rules:
        for index, slot in enumerate(rule.slots):
            parts[slot.name][slot.layer] = (rule, index)
    for name, by_layer in parts.items():
        arrays = {}
        for layer, (rule, index) in by_layer.items():
            part = tensors[rule.torch_name].chunk(len(rule.slots))[index]
            arrays[layer] = rule.form.from_torch(part, rule.sizes)
        stacked = None not in arrays
        yield name, (torch.stack([arrays[i] for i in sorted(arrays)]) if stacked else arrays[None]).contiguous()
