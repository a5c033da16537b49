"""Moves tensors from a checkpoint to a model folder, one at a time, and compares them afterwards."""

from collections.abc import Iterator, Mapping

import torch
from tqdm.auto import tqdm

from modeling_siglip_ext.loading import some

from .containers.arrays import CHUNK, Arrays, all_finite
from .containers.safetensors_files import SafetensorsWriter
from .errors import CheckpointError, VerificationError
from .name_map import Piece, pieces_by_array
from .plan import Plan


def write_tensors(
    plan: Plan, arrays: Arrays, writer: SafetensorsWriter, *, allow_nonfinite: bool = False
) -> list[str]:
    """Write every tensor of a plan; each array is read once.

    Returns:
        Names of the tensors with values that are not finite.

    Raises:
        CheckpointError: There are such values and they are not allowed.
    """
    nonfinite = []
    for name, pieces in tqdm(pieces_by_array(plan.rules).items(), desc="converting", unit="array"):
        nonfinite += write_pieces(plan, pieces, arrays[name].load(), writer)
    for name, tensor in plan.constants.items():
        writer.write(name, tensor)
    if nonfinite and not allow_nonfinite:
        raise not_finite(f"{some(nonfinite, 5)} as {writer.dtype}")
    return nonfinite


def not_finite(what: str) -> CheckpointError:
    return CheckpointError(f"NaN or infinite values in {what}; --allow_nonfinite converts them as they are")


def write_pieces(plan: Plan, pieces: list[Piece], array: torch.Tensor, writer: SafetensorsWriter) -> list[str]:
    """Write all that one array becomes; it is let go before the next is read. Names of the tensors not finite."""
    nonfinite = []
    for piece in pieces:
        tensor = changed(plan, piece, array)
        if not writer.write(piece.rule.torch_name, tensor, piece.index, len(piece.rule.slots)):
            nonfinite.append(piece.rule.torch_name)
    return nonfinite


def changed(plan: Plan, piece: Piece, array: torch.Tensor) -> torch.Tensor:
    """A piece's block of the model's tensor, resized where the plan says so."""
    change = plan.changes.get(piece.rule.torch_name)
    block = piece.to_torch(array)
    return block if change is None else change(block)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers, so that NaN equals NaN and 0 is not -0."""
    return tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize])


def largest_difference(source: torch.Tensor, result: torch.Tensor) -> float:
    """Of two tensors of one shape.

    Raises:
        VerificationError: The result is not the source as its own type stores it, bit for bit.
    """
    if source.shape != result.shape:
        raise VerificationError(f"shape {tuple(result.shape)} where the source has {tuple(source.shape)}")
    rows = max(1, CHUNK * len(source) // max(1, source.numel())) if source.ndim else 1
    largest = 0.0
    for a, b in zip(source.split(rows), result.split(rows)) if source.ndim else [(source, result)]:
        stored = a if a.dtype == b.dtype else a.to(b.dtype)
        if not torch.equal(bits(stored), bits(b)):
            error = (a.double() - b.double()).abs().max().item()
            raise VerificationError(f"it differs from its source by {error:.3g}")
        if a.dtype != b.dtype:
            finite = torch.isfinite(a) & torch.isfinite(b)
            error = (a.double() - b.double()).abs()[finite]
            largest = max(largest, error.max().item() if error.numel() else 0.0)
    return largest


def compare_pieces(plan: Plan, pieces: list[Piece], array: torch.Tensor, results: Arrays) -> list[tuple[str, float]]:
    """Compare all that one array became; the largest difference of each piece, by the tensor it is in."""
    differences = []
    for piece in pieces:
        name = piece.rule.torch_name
        result = results[name].load()
        try:
            if name in plan.changes:
                difference = largest_difference(changed(plan, piece, array), result)
            else:
                difference = largest_difference(piece.slot.select(array), piece.from_torch(result))
        except VerificationError as error:
            raise VerificationError(f"{name}: {error}") from error
        differences.append((name, difference))
    return differences


def compare_tensors(plan: Plan, arrays: Arrays, results: Arrays) -> dict[str, float]:
    """Compare every tensor with its source, mapped back by the inverse of the rule that made it.

    Resized tensors are computed again.

    Returns:
        The largest difference of each tensor: 0 where the type is the source's, rounding otherwise.

    Raises:
        VerificationError: A tensor is missing, left over, or not what its source says.
    """
    expected = {rule.torch_name for rule in plan.rules} | set(plan.constants)
    if expected != set(results):
        raise VerificationError(f"missing or left over: {', '.join(sorted(expected ^ set(results))[:5])}")
    differences = dict.fromkeys(sorted(expected), 0.0)
    for source, pieces in tqdm(pieces_by_array(plan.rules).items(), desc="verifying", unit="array"):
        for name, difference in compare_pieces(plan, pieces, arrays[source].load(), results):
            differences[name] = max(differences[name], difference)
    for name, tensor in plan.constants.items():
        differences[name] = largest_difference(tensor, results[name].load())
    return differences


def mapped_back(tensors: Arrays, pieces: list[Piece], *, allow_nonfinite: bool = False) -> Iterator[torch.Tensor]:
    """The blocks of another format's array, in order, from the tensors of a model folder.

    Raises:
        CheckpointError: Values that are not finite, unless they are allowed.
    """
    for piece in pieces:
        block = piece.from_torch(tensors[piece.rule.torch_name].load())
        if not allow_nonfinite and not all_finite(block):
            raise not_finite(piece.rule.torch_name)
        yield block


def compare_pieces_back(tensors: Arrays, pieces: list[Piece], array: torch.Tensor) -> None:
    for piece in pieces:
        largest_difference(piece.torch_block(tensors[piece.rule.torch_name].load()), piece.to_torch(array))


def compare_back(tensors: Arrays, results: Arrays, pieces_of: Mapping[str, list[Piece]]) -> None:
    """Compare the arrays of another format with the tensors they were made from, by the rules' other direction.

    Args:
        tensors: The model folder's.
        results: The arrays that were written.
        pieces_of: Which pieces make up each array.

    Raises:
        VerificationError: An array is missing, left over, or not what its tensor says.
    """
    if set(results) != set(pieces_of):
        raise VerificationError("the file has other arrays than were written")
    for name, pieces in tqdm(pieces_of.items(), desc="verifying", unit="array"):
        try:
            compare_pieces_back(tensors, pieces, results[name].load())
        except VerificationError as error:
            raise VerificationError(f"{name}: {error}") from error
