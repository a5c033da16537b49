"""The losses as they are called: arguments checked, one implementation and one distribution chosen."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
import torch.distributed as dist

from ..gpu import on_gpu
from . import eager
from .autograd import needed
from .checks import agree, check_arguments
from .distribution import GatherRows, communicator, communicator_name
from .tiled_sigmoid import tiled_sigmoid_loss
from .tiled_softmax import tiled_softmax_loss
from .tiles import triton_problem


# Up to this many pairs the eager expression is faster than tiles, and its matrices are small.
EAGER_PAIRS = 1024**2


def sigmoid_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    *,
    pair_ids: torch.Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    distribution: str = "auto",
    implementation: str = "auto",
) -> torch.Tensor:
    """Sigmoid loss of SigLIP over the global batch: all pairs' -log sigmoid(+-logit), divided by the batch size.

    Each rank returns its share of the sum times the world size. The mean over ranks is then the loss of the global
    batch, and gradients averaged over ranks, as DDP, FSDP and accelerate average them, are those of one device.

    Args:
        image_embeds: (B_local, D) float64, float32, bfloat16 or float16, normalised.
        text_embeds: (B_local, D), text i belonging to image i. Ranks may differ in B_local, not in D or dtype.
        logit_scale: One number, the logarithm of the factor on the cosines.
        logit_bias: One number, added to every logit.
        pair_ids: (B_local,) integers; an image and a text belong together wherever their ids agree, on whatever rank
            (several captions of one image, duplicates). By default each row is a pair of its own.
        group: The ranks that share the global batch, the data-parallel group; the default group if None.
        distribution: "gather" shows all ranks' texts to each rank at once, "ring" passes them from neighbour to
            neighbour, "auto" gathers while they are few. "none" takes the local batch for the whole one and never
            enters a collective. A group of one rank, or no torch.distributed, is "none" as well.
        implementation: "eager", the paper's expression, with several (B_local, B) matrices; "tiled", with memory
            O(B D), which computes the gradients together with the value (so it has no second derivative, and the
            gradient of the loss must be the same on all ranks, as it is under DDP); "triton", the same with one
            kernel a tile, on CUDA; "auto" chooses by batch size and device.

    Returns:
        Scalar in float32, in float64 for float64 embeddings.

    Raises:
        ValueError: Arguments whose shapes, dtypes or devices do not fit, here or on another rank of the group.

    Example:
        >>> images = torch.nn.functional.normalize(torch.randn(8, 16))
        >>> texts = torch.nn.functional.normalize(torch.randn(8, 16))
        >>> loss = sigmoid_loss(images, texts, torch.tensor(10.0).log(), torch.tensor(-10.0))

    Source: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", sections 3.2 and 3.3.
    """
    if logit_bias is None:
        raise ValueError("logit_bias is None: the sigmoid loss needs one, a zero if it is to do nothing")
    arguments = image_embeds, text_embeds, logit_scale, logit_bias
    name = _communicator_name(group, distribution, image_embeds)
    check_arguments(name, *arguments, pair_ids, distribution, implementation)
    chosen = _choose(implementation, name, image_embeds)
    if chosen != "eager":
        if image_embeds.device.type == "xla":
            return _on_xla().sigmoid_loss(*arguments, _int64(pair_ids), name, distribution)
        how = needed(arguments), name, distribution, chosen == "triton"
        return tiled_sigmoid_loss(*arguments, _int64(pair_ids), *how)[0]
    first, gather, share = _global_batch("eager sigmoid", name, image_embeds, pair_ids, distribution)
    return eager.sigmoid_sum(*arguments, _int64(pair_ids), first, gather, share)


def softmax_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None = None,
    *,
    pair_ids: torch.Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    distribution: str = "auto",
    implementation: str = "auto",
) -> torch.Tensor:
    """Softmax loss of CLIP and LiT over the global batch: the cross-entropies of texts given images and the reverse.

    Arguments, shares of ranks and errors are those of `sigmoid_loss`, with two differences. With `pair_ids` the target
    of a row is uniform over its positives, as in UniCL. `logit_bias` cancels in the softmax; it may be None, and
    otherwise gets a gradient of zero, so that DDP does not miss it.

    Sources: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", figure 3;
    Yang et al., "Unified Contrastive Learning in Image-Text-Label Space", section 3.2.
    """
    arguments = image_embeds, text_embeds, logit_scale
    name = _communicator_name(group, distribution, image_embeds)
    check_arguments(name, *arguments, logit_bias, pair_ids, distribution, implementation)
    chosen = _choose(implementation, name, image_embeds)
    if chosen != "eager":
        if image_embeds.device.type == "xla":
            loss = _on_xla().softmax_loss(*arguments, _int64(pair_ids), name, distribution)
        else:
            how = needed(arguments), name, distribution, chosen == "triton"
            loss = tiled_softmax_loss(*arguments, _int64(pair_ids), *how)[0]
    else:
        first, gather, share = _global_batch("eager softmax", name, image_embeds, pair_ids, distribution)
        loss = eager.softmax_sum(*arguments, _int64(pair_ids), first, gather) * share
    return loss if logit_bias is None else loss + 0 * logit_bias.sum()


def _communicator_name(group: dist.ProcessGroup | None, distribution: str, image_embeds: torch.Tensor) -> str:
    if image_embeds.device.type == "xla":
        from .xla import devices as xla

        return xla.communicator_name(group, distribution)
    return communicator_name(group, distribution)


def _on_xla() -> ModuleType:
    """The losses with a loop in the graph. Imported late, as torch_xla is there for nobody else."""
    from .xla import tiled as xla_losses

    return xla_losses


def _choose(implementation: str, name: str, image_embeds: torch.Tensor) -> str:
    if implementation != "auto":
        return implementation
    # Ranks may differ in their batch size, so together they must not choose by it.
    if name == "" and image_embeds.shape[0] ** 2 <= EAGER_PAIRS:
        return "eager"
    return "triton" if on_gpu(image_embeds) and triton_problem(image_embeds) is None else "tiled"


def _int64(pair_ids: torch.Tensor | None) -> torch.Tensor | None:
    return None if pair_ids is None else pair_ids.long()  # on all ranks, whatever each of them was given


def _global_batch(
    loss: str, name: str, image_embeds: torch.Tensor, pair_ids: torch.Tensor | None, distribution: str
) -> tuple[int, Callable[[torch.Tensor], torch.Tensor], float]:
    """For the eager losses: the place of our first row, how to gather rows of all ranks, the factor on the sum."""
    comm = communicator(name)
    if comm.world_size == 1:
        return 0, lambda rows: rows, 1 / image_embeds.shape[0]
    sizes = agree(comm, loss, image_embeds, pair_ids, True, distribution)
    return sum(sizes[: comm.rank]), lambda rows: GatherRows.apply(rows, comm, sizes), comm.world_size / sum(sizes)
