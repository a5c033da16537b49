"""A loop in the graph of torch_xla, so that the graph has one body however often it runs.

A Python loop over tiles would be unrolled into the graph: thousands of instructions for a large batch, and more for a
larger one. `torch_xla.experimental.scan` loops, too, but prepares the derivative of its body and keeps what that would
need, which for a loss is the whole matrix of logits. This one only computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain, count, pairwise

import torch
import torch_xla
import torch_xla.core.xla_builder as xb


# (constants, carried, slices) -> (carried, outputs)
Body = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor], Sequence[torch.Tensor]], tuple[list, list]]
Kind = tuple[torch.Size, torch.dtype]


def scan(
    body: Body, constants: Sequence[torch.Tensor], carried: Sequence[torch.Tensor], rows: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Run `body` for each row of `rows`, one after the other, without gradients.

    Args:
        body: A function at the top of a module, or one that always is the same object for the same work: it is traced
            once for each set of shapes. It computes from its arguments alone, with no numbers but 0 and 1 in it.
        constants: What every run sees.
        carried: What every run gets from the one before it, and must return with the same shapes and dtypes.
        rows: Tensors with n rows each; run i sees their row i, without that dimension.

    Returns:
        What the last run carried, and the outputs of all runs, stacked (n, ...).
    """
    arguments = [list(constants), list(carried), list(rows)]
    runs = rows[0].shape[0]
    kinds = tuple(
        tuple((tensor.shape[skip:], tensor.dtype) for tensor in part) for part, skip in zip(arguments, (0, 0, 1))
    )
    loop, outputs = _loop(body, runs, *kinds)
    device = rows[0].device
    stacked = [torch.zeros((runs, *shape), dtype=dtype, device=device) for shape, dtype in outputs]
    start = torch.zeros((), dtype=torch.int64, device=device)
    state = torch_xla._XLAC._xla_user_computation("siglip_ext::scan", [start, *chain(*arguments), *stacked], loop)
    first = 1 + len(constants)
    return state[first : first + len(carried)], state[first + len(carried) + len(rows) :]


@lru_cache(maxsize=64)
def _loop(
    body: Body, runs: int, constants: tuple[Kind, ...], carried: tuple[Kind, ...], rows: tuple[Kind, ...]
) -> tuple[object, list[Kind]]:
    """The loop as an XLA computation over (index, constants, carried, rows, outputs), and the kinds of the outputs."""
    computation, order, outputs = _traced(body, constants, carried, rows)
    kinds = [
        (torch.Size(), torch.int64),
        *constants,
        *carried,
        *((torch.Size((runs, *shape)), dtype) for shape, dtype in (*rows, *outputs)),
    ]
    builder = xb.create_builder("siglip_ext_scan")
    parameters = [xb.mkparam(builder, place, _shape(*kind)) for place, kind in enumerate(kinds)]
    edges = [0, 1]
    for part in (constants, carried, rows, outputs):
        edges.append(edges[-1] + len(part))

    def parts(state: Sequence[xb.Op]) -> list[list[xb.Op]]:
        return [list(state[start:end]) for start, end in pairwise(edges)]

    def unfinished(index: xb.Op, *_: xb.Op) -> xb.Op:
        return index < xb.Op.scalar(index.builder(), runs, dtype=xb.Type.S64)

    def run(*state: xb.Op) -> tuple[xb.Op, ...]:
        (index,), fixed, carry, inputs, stacks = parts(state)
        arguments = [*fixed, *carry, *(_row(tensor, index) for tensor in inputs)]
        result = xb.Op.call(computation, [arguments[place] for place in order])
        results = [result.get_tuple_element(place) for place in range(len(carry) + len(stacks))]
        stacks = [_with_row(stack, row, index) for stack, row in zip(stacks, results[len(carry) :])]
        following = index + xb.Op.scalar(index.builder(), 1, dtype=xb.Type.S64)
        return following, *fixed, *results[: len(carry)], *inputs, *stacks

    return xb.Op.mkwhile(parameters, unfinished, run).build("siglip_ext_scan"), outputs


def _traced(
    body: Body, constants: tuple[Kind, ...], carried: tuple[Kind, ...], rows: tuple[Kind, ...]
) -> tuple[object, list[int], list[Kind]]:
    """One run as an XLA computation, the places of the arguments that it takes, in order, and the kinds of outputs."""
    device = torch_xla.device()
    # Different numbers: equal ones may become one parameter, and 0 and 1 none.
    number = count(2)
    parts = [
        [torch.full(shape, next(number), dtype=dtype).to(device) for shape, dtype in part]
        for part in (constants, carried, rows)
    ]
    carry, outputs = body(*parts)
    if [(tensor.shape, tensor.dtype) for tensor in carry] != list(carried):
        raise ValueError("the body must carry on what it was given, with the same shapes and dtypes")
    lowering = torch_xla._XLAC.lowering.LoweringContext("siglip_ext_scan_body")
    lowering.build([*carry, *outputs])
    places = {lowering.tensor_parameter_id(tensor): place for place, tensor in enumerate(chain(*parts))}
    places.pop(-1, None)  # arguments that the body does not use
    if len(places) != len(lowering.parameter_id_tensor_mapping()):
        raise ValueError("the body uses a tensor or a number that is not among its arguments")
    computation = xb.computation_from_module_proto("siglip_ext_scan_body", lowering.hlo())
    return computation, [places[parameter] for parameter in range(len(places))], [(t.shape, t.dtype) for t in outputs]


def _shape(sizes: torch.Size, dtype: torch.dtype) -> object:
    return xb.tensor_shape(torch.empty(sizes, dtype=dtype, device="meta"))


def _row(tensor: xb.Op, index: xb.Op) -> xb.Op:
    sizes = tensor.shape().sizes
    return tensor.dynamic_slice(_start(tensor, index), [1, *sizes[1:]]).reshape(list(sizes[1:]))


def _with_row(tensor: xb.Op, row: xb.Op, index: xb.Op) -> xb.Op:
    return tensor.dynamic_update_slice(row.broadcast([1]), _start(tensor, index))


def _start(tensor: xb.Op, index: xb.Op) -> list[xb.Op]:
    return [index] + [index.zeros_like()] * (tensor.shape().rank - 1)
