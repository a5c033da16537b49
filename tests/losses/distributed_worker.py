"""Run by torchrun with 4 processes: the losses of 1 to 4 ranks against the loss of the whole batch on one.

Each rank checks its share of the value and of the gradients, and their averages over the ranks.
"""

import itertools
import re

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from modeling_siglip_ext.losses import sigmoid_loss, softmax_loss, tiles


WIDTH = 7
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def batch(pairs: int, dtype: torch.dtype, temperature: float, bias: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(pairs)
    images, noise = (torch.randn(pairs, WIDTH, generator=generator, dtype=dtype) for _ in range(2))
    images, texts = F.normalize(images), F.normalize(images + noise)
    return [images, texts, torch.tensor([temperature], dtype=dtype).log(), torch.tensor([bias], dtype=dtype)]


def value_and_gradients(loss, arguments, **options) -> list[torch.Tensor]:
    arguments = [argument.clone().requires_grad_() for argument in arguments]
    value = loss(*arguments, **options)
    value.backward()
    return [value.detach(), *(argument.grad for argument in arguments)]


def close(got: torch.Tensor, expected: torch.Tensor, size: torch.Tensor, case: str) -> None:
    error = (got - expected).norm() / size
    assert error <= TOLERANCE[expected.dtype], f"{case}: error {error:.1e}"


def check(group, sizes: list[int], rank: int) -> None:
    """Every loss, implementation and distribution over the ranks of the group."""
    world, total = len(sizes), sum(sizes)
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    ways = [("tiled", "gather"), ("tiled", "ring"), ("auto", "auto"), ("eager", "gather")]
    for loss, dtype, head, ids, (implementation, distribution) in itertools.product(
        (sigmoid_loss, softmax_loss), TOLERANCE, ((10.0, -10.0), (2.3, 0.0)), (None, torch.arange(total) % 5), ways
    ):
        whole = batch(total, dtype, *head)
        options = {"distribution": "none", "implementation": "eager", "pair_ids": ids}
        expected = value_and_gradients(loss, whole, **options)
        part = [whole[0][own], whole[1][own], *whole[2:]]
        options = {"distribution": distribution, "implementation": implementation, "group": group}
        got = value_and_gradients(loss, part, pair_ids=None if ids is None else ids[own], **options)
        case = f"{loss.__name__} {dtype} {head} ids {ids is not None} {implementation} {distribution} sizes {sizes}"
        for index, name in ((0, "value"), (3, "logit_scale"), (4, "logit_bias")):
            dist.all_reduce(got[index], group=group)
            # Sums of terms of order 1 that may cancel, so that the error need not be relative to what is left.
            close(got[index] / world, expected[index], expected[index].abs().clamp(min=1), f"{case} {name}")
        for index, name in ((1, "image_embeds"), (2, "text_embeds")):
            close(got[index] / world, expected[index][own], expected[index].norm(), f"{case} {name}")


def check_compiled(rank: int) -> None:
    """Compiled as one graph, the collectives inside the operator."""
    arguments = batch(24, torch.float64, 10.0, -10.0)
    own = [arguments[0][6 * rank :][:6], arguments[1][6 * rank :][:6], *arguments[2:]]
    for loss, distribution in itertools.product((sigmoid_loss, softmax_loss), ("gather", "ring")):
        options = {"distribution": distribution, "implementation": "tiled"}
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        expected = value_and_gradients(loss, own, **options)
        for got, one in zip(value_and_gradients(compiled, own, **options), expected):
            close(got, one, one.norm().clamp(min=1), f"{loss.__name__} {distribution} compiled")


def raises(message: str, **changes) -> None:
    """Every rank must raise a ValueError, rather than some raise and the others wait."""
    images, texts, scale, bias = batch(4, torch.float32, 10.0, -10.0)
    arguments = {"image_embeds": images, "text_embeds": texts, "logit_scale": scale, "logit_bias": bias}
    with pytest.raises(ValueError, match=re.escape(message)):
        sigmoid_loss(**arguments | changes)


def check_refusals(rank: int) -> None:
    bad = rank == 2
    message, changes = "refused on rank [2]", {}
    if bad:
        message, changes = "text_embeds (3, 7)", {"text_embeds": torch.ones(3, WIDTH)}
    raises(message, **changes)
    raises("having pair_ids differs", pair_ids=torch.arange(4) if bad else None)
    wide = F.normalize(torch.ones(4, WIDTH + bad))
    raises("width of image_embeds differs", image_embeds=wide, text_embeds=wide)
    raises("the loss differs", implementation="eager" if bad else "tiled")
    raises("distribution differs", distribution="ring" if bad else "gather")
    if bad:  # an evaluation on one rank waits for nobody
        sigmoid_loss(*batch(4, torch.float32, 10.0, -10.0), distribution="none")


def main() -> None:
    dist.init_process_group()
    rank = dist.get_rank()
    tiles.CPU_TILE = 4, 8  # small, so that a block is several tiles and the last of them are ragged
    for ranks, sizes in (([0], [6]), ([1, 2], [5, 7]), ([0, 2, 3], [6, 6, 6]), (None, [3, 9, 1, 6])):
        # The default group, and others as the data-parallel ranks of a mesh would form them.
        group = None if ranks is None else dist.new_group(ranks)
        ranks = range(4) if ranks is None else ranks
        if rank in ranks:
            check(group, sizes, ranks.index(rank))
            print(f"rank {rank}: agrees in a group of {len(sizes)}")
    check_compiled(rank)
    print(f"rank {rank}: compiles")
    check_refusals(rank)
    print(f"rank {rank}: raises with the others")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
