"""Value and gradients of both losses on XLA devices: what `implementation="tiled"` means there.

As in `tiled_sigmoid.py` and `tiled_softmax.py` the gradients come with the value, and memory is O(B * D); but the
loop over rows of images is in the graph (`scan.py`), whose size does not depend on the batch. Products are of float32
operands: a TPU multiplies those as bfloat16 unless told otherwise, and adds in float32.

Under SPMD the rows are worked on where they are: if the global mesh has an axis called "data", each device loops over
its own images, against all texts, and keeps a sum of its own for their gradients until the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch_xla.distributed.spmd as xs
import torch_xla.runtime as xr

from ..autograd import needed
from ..checks import agree
from ..distribution import LogSumExps, Sums, choose, communicator, gather_rows, sweep
from ..tiles import accumulator_dtype, embedding_gradients
from .scan import Body, scan


DATA_AXIS = "data"
# Images of one device in one run of the loop, at most: enough rows to fill a TPU's matrix unit.
ROWS = 512


def sigmoid_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    pair_ids: torch.Tensor | None,
    group: str,
    distribution: str,
) -> torch.Tensor:
    """This rank's share of the sigmoid loss; arguments as those of `tiled_sigmoid.tiled_sigmoid_loss`."""
    arguments = images, texts, logit_scale, logit_bias
    needs = needed(arguments)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        comm, layout = communicator(group), _Layout(images.shape[0])
        sizes = agree(comm, "sigmoid", images, pair_ids, needs[1], distribution)
        first_image, share = sum(sizes[: comm.rank]), comm.world_size / sum(sizes)
        dtype = accumulator_dtype(images.dtype)
        scale, bias = logit_scale.to(dtype).exp().view(()), logit_bias.to(dtype).view(())

        # d log(scale) is <images, d images> and also <texts, d texts>, so one of the two is needed for it.
        sum_images, sum_texts = needs[0] or (needs[2] and not needs[1]), needs[1]
        body = _sigmoid_body(any(needs), sum_images, sum_texts)
        image_ids = _places(first_image, images) if pair_ids is None else pair_ids
        rows = [layout.split(images.to(dtype)), layout.split(image_ids)]
        totals: list[torch.Tensor] = []

        def visit(first_text: int, block: list[torch.Tensor], text_sums: list[torch.Tensor]) -> None:
            texts = block[0]
            text_ids = _places(first_text, texts) if pair_ids is None else block[1]
            constants = [texts.to(dtype), text_ids, scale, bias]
            _scan_block(body, layout, constants, text_sums, rows, totals)

        block = [texts] if pair_ids is None else [texts, pair_ids]
        accumulators = [Sums(scale, images.shape[1])] if sum_texts else []
        text_sums = sweep(comm, choose(distribution, sizes, images.shape[1]), sizes, block, accumulators, visit)
        image_sums = layout.join(totals[2]) if sum_images else None
        gradients = [
            *embedding_gradients(images, texts, image_sums, text_sums, scale * share, logit_scale, needs),
            (totals[1].sum() * share).view_as(logit_bias) if needs[3] else scale.new_empty(0),
        ]
        value = totals[0].sum() * share
    return _WithGradients.apply(value, gradients, needs, *arguments)


def softmax_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    logit_scale: torch.Tensor,
    pair_ids: torch.Tensor | None,
    group: str,
    distribution: str,
) -> torch.Tensor:
    """This rank's share of the softmax loss; arguments as those of `tiled_softmax.tiled_softmax_loss`."""
    arguments = images, texts, logit_scale
    needs = needed(arguments)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        comm, layout = communicator(group), _Layout(images.shape[0])
        sizes = agree(comm, "softmax", images, pair_ids, needs[1], distribution)
        distribution = choose(distribution, sizes, images.shape[1])
        first_image, share = sum(sizes[: comm.rank]), comm.world_size / (2 * sum(sizes))
        dtype = accumulator_dtype(images.dtype)
        scale = logit_scale.to(dtype).exp().view(())

        image_ids = _places(first_image, images) if pair_ids is None else pair_ids
        rows = [layout.split(images.to(dtype)), layout.split(image_ids)]
        weights = torch.ones_like(rows[1], dtype=dtype)
        if pair_ids is not None:  # the positives of a row share its target
            everybody = layout.replicated([gather_rows(comm, pair_ids, sizes)])
            weights = weights / scan(_occurrences_body, everybody, [], rows[1:])[1][0]
        rows.append(weights)
        seen: list[torch.Tensor] = []

        def find_lse(first_text: int, block: list[torch.Tensor], text_lses: list[torch.Tensor]) -> None:
            texts, text_lse = block[0], text_lses[0]
            text_ids = _places(first_text, texts) if pair_ids is None else block[1]
            constants = [texts.to(dtype), text_ids, scale]
            carried = [layout.zeros(text_lse) - torch.inf]
            (columns,), (row_lse, targets) = scan(_lse_body, layout.replicated(constants), carried, rows)
            text_lse.copy_(_logaddexp(text_lse, columns.logsumexp(0)))
            seen[:] = [_logaddexp(seen[0], row_lse), seen[1] + targets] if seen else [row_lse, targets]

        # d log(scale) is <images, d images> and also <texts, d texts>, so one of the two is needed for it.
        sum_images, sum_texts = needs[0] or (needs[2] and not needs[1]), needs[1]
        body = _softmax_body(sum_images, sum_texts)
        totals: list[torch.Tensor] = []

        def find_gradients(first_text: int, block: list[torch.Tensor], text_sums: list[torch.Tensor]) -> None:
            texts, text_lse = block[:2]
            text_ids = _places(first_text, texts) if pair_ids is None else block[2]
            constants = [texts.to(dtype), text_ids, scale, text_lse]
            _scan_block(body, layout, constants, text_sums, [*rows, image_lse], totals)

        block = [texts] if pair_ids is None else [texts, pair_ids]
        (text_lse,) = sweep(comm, distribution, sizes, block, [_LogSumExps(scale)], find_lse)
        image_lse, targets = seen
        text_sums = []
        if any(needs):
            accumulators = [Sums(scale, images.shape[1])] if sum_texts else []
            block = [texts, text_lse, *block[1:]]
            text_sums = sweep(comm, distribution, sizes, block, accumulators, find_gradients)
        image_sums = layout.join(totals[0]) if sum_images else None
        gradients = embedding_gradients(images, texts, image_sums, text_sums, scale * share, logit_scale, needs)
        value = (layout.join(image_lse - 2 * targets) + text_lse).sum() * share
    return _WithGradients.apply(value, gradients, needs, *arguments)


# ---- the bodies of the loops: r images of each of w devices, (w, r, D), against n texts, (n, D)


@cache
def _sigmoid_body(gradients: bool, of_images: bool, of_texts: bool) -> Body:
    """Loss of each image, and if wanted: the bias's gradient by image, the images' and (carried) the texts'."""

    def body(constants: Sequence, carried: Sequence, rows: Sequence) -> tuple[list, list]:
        (texts, text_ids, scale, bias), (images, image_ids) = constants, rows
        z = (images @ texts.mT) * scale + bias
        positive = image_ids[..., None] == text_ids
        z = torch.where(positive, -z, z)  # a pair's loss is log(1 + exp(z)) now
        losses = (z.relu() + (-z.abs()).exp().log1p()).sum(-1)
        if not gradients:
            return [], [losses]
        gradient = z.sigmoid()
        gradient = torch.where(positive, -gradient, gradient)
        carry = [carried[0] + gradient.mT @ images] if of_texts else []
        return carry, [losses, gradient.sum(-1), *([gradient @ texts] if of_images else [])]

    return body


def _occurrences_body(constants: Sequence, carried: Sequence, rows: Sequence) -> tuple[list, list]:
    """How often each id is among all ids."""
    return [], [(rows[0][..., None] == constants[0]).sum(-1)]


def _lse_body(constants: Sequence, carried: Sequence, rows: Sequence) -> tuple[list, list]:
    """Log-sum-exp of each image and (carried) of each text, and the mean logit of an image's positives."""
    (texts, text_ids, scale), (images, image_ids, weights) = constants, rows
    z = (images @ texts.mT) * scale
    positive = image_ids[..., None] == text_ids
    targets = torch.where(positive, z, torch.zeros_like(z)).sum(-1) * weights
    return [_logaddexp(carried[0], z.logsumexp(1))], [z.logsumexp(-1), targets]


@cache
def _softmax_body(of_images: bool, of_texts: bool) -> Body:
    """Gradients of the images and (carried) of the texts."""

    def body(constants: Sequence, carried: Sequence, rows: Sequence) -> tuple[list, list]:
        (texts, text_ids, scale, text_lse), (images, image_ids, weights, image_lse) = constants, rows
        z = (images @ texts.mT) * scale
        # one target a row and one a column
        target = torch.where(image_ids[..., None] == text_ids, (weights + weights)[..., None], torch.zeros_like(z))
        gradient = (z - image_lse[..., None]).exp() + (z - text_lse).exp() - target
        carry = [carried[0] + gradient.mT @ images] if of_texts else []
        return carry, [gradient @ texts] if of_images else []

    return body


# ---- what both share


class _Layout:
    """Rows of the batch as the loop takes them: (runs, devices, rows, ...).

    Without SPMD there is one device. With it, splitting the batch as (devices, runs, rows) first leaves every row on
    its device.
    """

    def __init__(self, batch: int) -> None:
        mesh = xs.get_global_mesh() if xr.is_spmd() else None
        self.mesh, self.devices = None, 1
        if mesh is not None and DATA_AXIS in (mesh.axis_names or ()):
            devices = mesh.shape()[DATA_AXIS]
            if batch % devices == 0:
                self.mesh, self.devices = mesh, devices
        own = batch // self.devices
        self.rows = next(rows for rows in range(min(ROWS, own), 0, -1) if own % rows == 0)

    def split(self, rows: torch.Tensor) -> torch.Tensor:
        by_device = rows.reshape(self.devices, -1, self.rows, *rows.shape[1:])
        return self._mark(by_device.transpose(0, 1), 1)

    def join(self, stacked: torch.Tensor) -> torch.Tensor:
        return self._mark(stacked.transpose(0, 1).reshape(-1, *stacked.shape[3:]), 0)

    def zeros(self, like: torch.Tensor) -> torch.Tensor:
        """Something to accumulate in, one for each device."""
        return self._mark(like.new_zeros(self.devices, *like.shape), 0)

    def replicated(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """On every device, before the loop begins rather than anew in every run."""
        return [self._mark(tensor, None) for tensor in tensors]

    def _mark(self, tensor: torch.Tensor, dimension: int | None) -> torch.Tensor:
        if self.mesh is None:
            return tensor
        spec = tuple(DATA_AXIS if place == dimension else None for place in range(tensor.ndim))
        marked = tensor.clone()
        xs.annotate_custom_sharding(marked, self.mesh, spec)
        return marked


def _scan_block(
    body: Body,
    layout: _Layout,
    constants: list[torch.Tensor],
    text_sums: list[torch.Tensor],
    rows: Sequence[torch.Tensor],
    totals: list[torch.Tensor],
) -> None:
    """Show all images to a block of texts: what is carried is added to `text_sums`, the outputs to `totals`."""
    carried = [layout.zeros(text_sum) for text_sum in text_sums]
    carried, outputs = scan(body, layout.replicated(constants), carried, rows)
    for text_sum, of_devices in zip(text_sums, carried):
        text_sum += of_devices.sum(0)
    totals[:] = [a + b for a, b in zip(totals, outputs)] if totals else outputs


def _logaddexp(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """log(exp(one) + exp(other)), at least one of them finite. For `torch.logaddexp` XLA would go through the host."""
    return torch.maximum(one, other) + (-(one - other).abs()).exp().log1p()


class _LogSumExps(LogSumExps):
    def merge(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return _logaddexp(one, other)


def _places(first: int, rows: torch.Tensor) -> torch.Tensor:
    """Where rows stand in the global batch: what takes the place of ids, as an image belongs to the text beside it."""
    return torch.arange(first, first + rows.shape[0], dtype=torch.int32, device=rows.device)


class _WithGradients(torch.autograd.Function):
    """A value whose gradients are known."""

    @staticmethod
    def forward(
        ctx, value: torch.Tensor, gradients: Sequence[torch.Tensor], needs: Sequence[bool], *arguments: torch.Tensor
    ):
        ctx.dtypes = [argument.dtype if need else None for argument, need in zip(arguments, needs)]
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss: torch.Tensor):
        # Cast only now, after the factor that keeps float16 from underflowing.
        pairs = zip(ctx.saved_tensors, ctx.dtypes)
        return None, None, None, *(None if dtype is None else (g * grad_loss).to(dtype) for g, dtype in pairs)
