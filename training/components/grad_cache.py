"""Gradient cache: a contrastive batch larger than the towers can hold at once.

The loss needs all embeddings of the batch, but the towers' activations are needed only one chunk at a time. So the
towers run twice: first without a graph, for the embeddings; then, once the loss has given the gradient of every
embedding, chunk by chunk with that gradient. Gradients are those of one big batch, for one more forward.

Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from ..arguments import SiglipExtTrainingArguments
from ..data.lengths import check_holds
from .devices import backend_for
from .towers import loss_head, whole


class CachedStep(NamedTuple):
    """What a step leaves behind besides the gradients in the parameters."""

    loss: torch.Tensor
    """Scalar, without graph; the mean over ranks is the loss of the global batch."""
    image_embeds: torch.Tensor
    """(B, D), of this rank, without graph."""
    text_embeds: torch.Tensor


def random_state(tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
    """Remember the random generators of the CPU and of the tensors' devices; the result sets them again."""
    cpu = torch.get_rng_state()
    restore_devices = backend_for(*(tensor.device for tensor in tensors)).random_state(tensors)

    def restore() -> None:
        torch.set_rng_state(cpu)
        restore_devices()

    return restore


def split_batch(inputs: dict, size: int) -> list[dict]:
    """Chunks of `size` examples; what is no tensor or list with a row per example goes into every chunk.

    Raises:
        ValueError: if images and texts differ in number.
    """
    rows = len(inputs["input_ids"])
    if len(inputs["pixel_values"]) != rows:
        raise ValueError(f"{len(inputs['pixel_values'])} images and {rows} texts: a pair needs one of each")
    return [
        {name: value[start : start + size] if has_rows(value, rows) else value for name, value in inputs.items()}
        for start in range(0, rows, size)
    ]


def has_rows(value: Any, rows: int) -> bool:
    """Whether it is a tensor or a list with so many rows."""
    return isinstance(value, (torch.Tensor, list)) and getattr(value, "ndim", 1) > 0 and len(value) == rows


def chunk_size(args: SiglipExtTrainingArguments, inputs: dict) -> int | None:
    """Pairs in a chunk of a batch; None without a gradient cache."""
    if args.mini_batch_tokens is None:
        return args.mini_batch_size
    return images_in_chunk(inputs, args.mini_batch_tokens)


def images_in_chunk(inputs: dict, mini_batch_tokens: int) -> int:
    """Images of a NaFlex batch that have at most so many patches together, in chunks of about the same size.

    Padding counts, so that all processes, which pad to one length, get the same number of chunks.

    Raises:
        ValueError: images of one size, or one image with more patches than that.
    """
    pixels = inputs["pixel_values"]
    if pixels.ndim != 3:
        raise ValueError(
            "mini_batch_tokens counts patches of NaFlex, and the images have one size: set mini_batch_size"
        )
    rows, length, _ = pixels.shape
    check_holds(mini_batch_tokens, length)
    chunks = -(-rows // (mini_batch_tokens // length))
    return -(-rows // chunks)


def check_chunkable(model: nn.Module) -> None:
    """Refuse towers whose output for one example depends on the others in its chunk.

    Raises:
        ValueError: naming the first batch normalisation that is in train mode.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"mini_batch_size: {name} normalises over the batch, so chunks would train another model than the "
                "whole batch; lock that tower, or leave mini_batch_size unset"
            )


def begin_step(model: nn.Module, optimizer: Any, locked: Sequence[nn.Module]) -> None:
    """What Trainer does at the beginning of a step, which chunks go without; locked towers stay in evaluation mode."""
    model.train()
    if callable(prepare := getattr(optimizer, "train", None)):
        prepare()  # of schedule-free optimisers
    for tower in locked:
        tower.eval()


def let_go_of_images(batch: dict) -> None:
    """Empty the images of a batch that was trained on: Trainer holds on to it until it has the next one."""
    for name, value in batch.items():
        if name == "pixel_values" or getattr(value, "ndim", 0) > 3:
            batch[name] = value.new_empty(0)


def cached_backward(
    model: nn.Module,
    core: nn.Module,
    chunks: Sequence[dict],
    loss: Callable[..., torch.Tensor],
    *,
    prepare: Callable[[dict], dict] = lambda chunk: chunk,
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
    weight: float = 1.0,
    sync: bool = True,
    beside: Callable[[Any, dict], torch.Tensor] | None = None,
    beside_options: Mapping[str, Any] = MappingProxyType({}),
) -> CachedStep:
    """Accumulate in `.grad` the gradients of `weight` × the loss of all chunks together.

    Args:
        model: the model as it is wrapped by DDP, FSDP or torch.compile. Both towers run through its forward, called
            with `return_loss=False`, because a direct call of a submodule would miss the hooks of the wrapper.
        core: the module inside that owns `logit_scale` and `logit_bias`.
        chunks: inputs of the forward without `return_loss`, each a part of this rank's batch. All ranks need the same
            number of chunks.
        loss: (image_embeds, text_embeds, logit_scale, logit_bias) → scalar, as `modeling_siglip_ext.sigmoid_loss`.
        prepare: applied to a chunk right before each of its two forwards, e.g. to move and normalise its images.
        backward: called on a scalar in place of `Tensor.backward`, e.g. to scale it for float16.
        weight: factor on the gradients, e.g. one over the number of accumulated batches.
        sync: whether the last chunk's backward lets DDP or FSDP average gradients over the ranks.
        beside: (outputs, inputs) → scalar, the mean over a chunk's examples of what is trained for besides; it is
            added for each chunk according to its examples.
        beside_options: further arguments of the forward whose outputs `beside` gets.
    """
    restores, image_rows, text_rows = [], [], []
    with torch.no_grad():
        for chunk in chunks:
            inputs = prepare(chunk)
            restores.append(random_state([value for value in inputs.values() if isinstance(value, torch.Tensor)]))
            outputs = model(**inputs, return_loss=False)
            image_rows.append(outputs.image_embeds)
            text_rows.append(outputs.text_embeds)
            del inputs, outputs
    sizes = [len(rows) for rows in image_rows]
    images, texts = _leaf(image_rows), _leaf(text_rows)
    del image_rows, text_rows

    scale, bias = (None if p is None else _copy(p) for p in loss_head(core))
    value = loss(images, texts, scale, bias)
    wanted = [leaf for leaf in (images, texts, scale, bias) if leaf is not None and leaf.requires_grad]
    image_grads, text_grads, *head_grads = torch.autograd.grad(value * weight, wanted)
    images, texts, value = images.detach(), texts.detach(), value.detach()

    parts = zip(chunks, restores, image_grads.split(sizes), text_grads.split(sizes))
    for number, (chunk, restore, image_grad, text_grad) in enumerate(parts, start=1):
        last = number == len(chunks)
        with nullcontext() if last and sync else no_gradient_sync(model):
            inputs = prepare(chunk)
            restore()
            outputs = model(**inputs, return_loss=False, **beside_options)
            # Its gradient with respect to each embedding is the one of the loss.
            surrogate = _dot(outputs.image_embeds, image_grad) + _dot(outputs.text_embeds, text_grad)
            if beside is not None:
                part = beside(outputs, inputs) * (len(image_grad) / sum(sizes))
                surrogate, value = surrogate + weight * part, value + part.detach()
            if last:
                # Under FSDP the parameters are whole only now, between forward and backward.
                for parameter, grad in zip(_unsharded(model, core), head_grads):
                    surrogate = surrogate + _dot(parameter, grad)
            backward(surrogate)
    return CachedStep(value, images, texts)


@contextmanager
def no_gradient_sync(model: nn.Module) -> Generator[None]:
    """Let gradients add up on this rank; works for DDP, FSDP2 and unwrapped models, compiled or not."""
    wrapped = getattr(model, "_orig_mod", model)
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            wrapped.set_requires_gradient_sync(True)
    elif callable(no_sync := getattr(wrapped, "no_sync", None)):
        with no_sync():
            yield
    else:
        yield


def _leaf(rows: list[torch.Tensor]) -> torch.Tensor:
    """All rows as a leaf of a new graph, in float32 or better, so that their gradients are not rounded to bfloat16."""
    leaf = torch.cat(rows)
    return leaf.to(torch.promote_types(leaf.dtype, torch.float32)).requires_grad_()


def _dot(output: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    return (output.to(grad.dtype) * grad).sum()


def _copy(parameter: torch.Tensor) -> torch.Tensor:
    """The whole parameter as a leaf of a new graph."""
    return whole(parameter).detach().clone().requires_grad_(parameter.requires_grad)


def _unsharded(model: nn.Module, core: nn.Module) -> list[torch.Tensor]:
    """The trained parameters of the loss head, those that FSDP hangs its hooks on."""
    wrapped = getattr(model, "_orig_mod", model)
    if isinstance(wrapped, FSDPModule):
        wrapped.unshard()
    return [parameter for parameter in loss_head(core) if parameter is not None and parameter.requires_grad]
