"""A declarative map between the tensors of two formats, read in both directions from one table of rules.

The one side is always ours (and stock transformers', which has the same names); `Slot` says where the other format
keeps the same numbers. Every piece of a rule is a contiguous block on either side, so tensors can be moved one by one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Form:
    """How one array is laid out on either side; the way back also needs the number of attention heads."""

    to_torch: Callable[[torch.Tensor], torch.Tensor]
    from_torch: Callable[[torch.Tensor, int], torch.Tensor]


SAME = Form(lambda array: array, lambda tensor, _: tensor)


@dataclass(frozen=True)
class Slot:
    """Where the other format keeps an array.

    Args:
        name: Its name there.
        layer: The index in it, where layers are stacked along a new first axis.
        part: Which of `parts` equal blocks along the first axis, where several tensors are joined.
    """

    name: str
    layer: int | None = None
    part: int = 0
    parts: int = 1

    def select(self, array: torch.Tensor) -> torch.Tensor:
        """This slot's block of the array, a view."""
        if self.layer is not None:
            return array[self.layer]
        return array if self.parts == 1 else array.chunk(self.parts)[self.part]


@dataclass(frozen=True)
class Rule:
    """A torch tensor and the array it is made of; of several arrays, their blocks joined along the first axis."""

    torch_name: str
    slots: tuple[Slot, ...]
    form: Form
    heads: int = 1


@dataclass(frozen=True)
class Piece:
    """One slot of one rule: the block of a torch tensor that a slot fills."""

    rule: Rule
    index: int

    @property
    def slot(self) -> Slot:
        return self.rule.slots[self.index]

    def to_torch(self, array: torch.Tensor) -> torch.Tensor:
        """The block of the torch tensor, from the whole array of the other format."""
        return self.rule.form.to_torch(self.slot.select(array))

    def torch_block(self, tensor: torch.Tensor) -> torch.Tensor:
        """The block of the whole torch tensor, a view."""
        blocks = len(self.rule.slots)
        return tensor if blocks == 1 else tensor.chunk(blocks)[self.index]

    def from_torch(self, tensor: torch.Tensor) -> torch.Tensor:
        """The slot's block of the other format's array, from the whole torch tensor."""
        return self.rule.form.from_torch(self.torch_block(tensor), self.rule.heads)


def unclaimed(names: Iterable[str], rules: Iterable[Rule]) -> list[str]:
    """The arrays of the other format that no rule takes."""
    return sorted(set(names) - {slot.name for rule in rules for slot in rule.slots})


def pieces_by_array(rules: Iterable[Rule]) -> dict[str, list[Piece]]:
    """The pieces of every array of the other format, in the order of its layers or parts."""
    pieces: dict[str, list[Piece]] = defaultdict(list)
    for rule in rules:
        for index, slot in enumerate(rule.slots):
            pieces[slot.name].append(Piece(rule, index))
    for found in pieces.values():
        found.sort(key=lambda piece: (piece.slot.layer or 0, piece.slot.part))
    return dict(pieces)


def join(pieces: list[Piece], blocks: list[torch.Tensor]) -> torch.Tensor:
    """The array of the other format from the blocks of its pieces."""
    slot = pieces[0].slot
    if slot.layer is not None:
        return torch.stack(blocks)
    return blocks[0] if slot.parts == 1 else torch.cat(blocks)


def to_torch(rules: Iterable[Rule], load: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each torch tensor in turn; `load` reads one array of the other format."""
    for rule in rules:
        blocks = [Piece(rule, index).to_torch(load(slot.name)) for index, slot in enumerate(rule.slots)]
        yield rule.torch_name, (blocks[0] if len(blocks) == 1 else torch.cat(blocks)).contiguous()


def from_torch(rules: Iterable[Rule], tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each array of the other format in turn, the inverse of `to_torch`."""
    for name, pieces in pieces_by_array(rules).items():
        yield name, join(pieces, [piece.from_torch(tensors[piece.rule.torch_name]) for piece in pieces]).contiguous()


def array_shapes(rules: Iterable[Rule], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of the other format's arrays, from those of the torch tensors."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return {name: tuple(array.shape) for name, array in from_torch(rules, tensors)}
