"""The losses on a device, ours and others': time, memory and error of value and gradients at 8,192 to a million pairs.

The others are the expression that open_clip and the papers' codes use, and the packages siglip-kernel (sigmoid) and
memeff (softmax), where they are installed.
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from modeling_siglip_ext.losses import sigmoid_loss, softmax_loss
from modeling_siglip_ext.losses.checks import IMPLEMENTATIONS

from .reference import Reference, errors, sigmoid_reference, softmax_reference
from .setting import Bench, Figures, Item, sets_beyond_cache


Loss = Callable[..., torch.Tensor]
WIDTH, TINY_WIDTH = 768, 32
SIZES = tuple(2**power for power in range(13, 21))
TINY_SIZES = (64, 96)
MOST_FLOAT32, MOST_SOFTMAX, MOST_SWEPT = 2**17, 2**17, 2**18
HEAD = 10.0, -10.0  # temperature and bias, as SigLIP starts


# ---- the others'


def sigmoid_expression(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """As in open_clip: labels of 1 and -1, and -log sigmoid(label * logit), all in the embeddings' dtype."""
    logits = scale.exp() * images @ texts.mT + bias
    labels = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


def softmax_expression(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """As in CLIP and open_clip."""
    by_image = scale.exp() * images @ texts.mT
    by_text = scale.exp() * texts @ images.mT
    targets = torch.arange(len(images), device=images.device)
    return (F.cross_entropy(by_image, targets) + F.cross_entropy(by_text, targets)) / 2


def siglip_kernel() -> Loss:
    from siglip_kernel import fused_siglip_loss

    return fused_siglip_loss


def memeff() -> Loss:
    from memeff import MemoryEfficientCLIPLoss

    # unless told otherwise it scales its gradients by another factor than the loss has
    loss = MemoryEfficientCLIPLoss(temperature=1 / HEAD[0], normalized_inputs=True, stable=False)
    return lambda images, texts, scale, bias: loss(images, texts)


PACKAGES: dict[str, tuple[str, Callable[[], Loss]]] = {
    "sigmoid": ("siglip-kernel", siglip_kernel),
    "softmax": ("memeff", memeff),
}
EXPRESSIONS: dict[str, Loss] = {"sigmoid": sigmoid_expression, "softmax": softmax_expression}
OURS: dict[str, Loss] = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}


def our_losses(kind: str) -> dict[str, Callable[[], Loss]]:
    names = [name for name in IMPLEMENTATIONS if name != "auto" and (name != "triton" or torch.cuda.is_available())]
    return {name: partial(partial, OURS[kind], distribution="none", implementation=name) for name in names}


def other_losses(kind: str) -> dict[str, Callable[[], Loss]]:
    package, make = PACKAGES[kind]
    return {"expression": lambda: EXPRESSIONS[kind], package: make}


# ---- one measurement


def inputs(pairs: int, width: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> list[torch.Tensor]:
    """Images, texts whose cosine with their image is about 0.45, and the head: leaves that want gradients."""
    generator = torch.Generator(device).manual_seed(seed)
    images, noise = (torch.randn(pairs, width, device=device, generator=generator) for _ in range(2))
    images, texts = F.normalize(images), F.normalize(images + 2 * noise)
    head = torch.tensor(HEAD[0], device=device).log(), torch.tensor(HEAD[1], device=device)
    return [x.requires_grad_() for x in (images.to(dtype), texts.to(dtype), *head)]


@lru_cache(maxsize=1)
def reference(kind: str, pairs: int, width: int, dtype: torch.dtype, device: torch.device) -> Reference:
    with torch.no_grad():
        arguments = [x.detach() for x in inputs(pairs, width, dtype, device)]
        if kind == "softmax":
            return softmax_reference(*arguments[:3])
        return sigmoid_reference(*arguments, sweep=pairs <= MOST_SWEPT)


def step(loss: Loss, arguments: list[torch.Tensor]) -> torch.Tensor:
    for argument in arguments:
        argument.grad = None
    value = loss(*arguments)
    value.backward()
    return value.detach()


def measure(bench: Bench, make: Callable[[], Loss], kind: str, pairs: int, dtype: torch.dtype) -> Figures:
    loss = make()
    width = TINY_WIDTH if bench.tiny else WIDTH
    step(loss, inputs(256, width, dtype, bench.device))  # workspaces and compiled kernels, which are no part of it
    arguments, values = inputs(pairs, width, dtype, bench.device), []
    found: Figures = {"bytes": bench.peak(lambda: values.append(step(loss, arguments)))}
    found["errors"] = errors(reference(kind, pairs, width, dtype, bench.device), values[0], arguments)
    found["loss"] = values[0].item()
    if not all(map(math.isfinite, [found["loss"], *found["errors"].values()])):
        return {"error": "the value or a gradient is not finite"}
    bench.free()
    count = sets_beyond_cache(bench, 2 * pairs * width * arguments[0].element_size())
    sets = [arguments, *(inputs(pairs, width, dtype, bench.device, seed) for seed in range(1, count))]
    found |= bench.measure(lambda number: step(loss, sets[number % count]), warm=True)
    return found | bench.shares(6 * pairs**2 * width / (1e-3 * found["ms"]))


# ---- sections


def points(bench: Bench) -> Iterator[tuple[str, int, torch.dtype]]:
    """Kind, pairs, dtype; the most wanted and the quickest first."""
    sizes = TINY_SIZES if bench.tiny else SIZES
    middle = [pairs for pairs in sizes if pairs <= MOST_SOFTMAX]
    yield from (("sigmoid", pairs, torch.bfloat16) for pairs in middle)
    yield from (("softmax", pairs, torch.bfloat16) for pairs in middle)
    yield from (("sigmoid", pairs, torch.bfloat16) for pairs in sizes if pairs > MOST_SOFTMAX)
    yield from ((kind, pairs, torch.float32) for pairs in middle for kind in OURS if pairs <= MOST_FLOAT32)


def items(bench: Bench, losses_of: Callable[[str], dict[str, Callable[[], Loss]]]) -> Iterator[Item]:
    for kind, pairs, dtype in points(bench):
        for name, make in losses_of(kind).items():
            if name != PACKAGES[kind][0] or installed(name):
                of = str(dtype).removeprefix("torch.")
                run = partial(measure, bench, make, kind, pairs, dtype)
                yield Item(f"{kind}, {name}, {pairs}, {of}", run, group=f"{kind}, {name}, {of}")


def installed(package: str) -> bool:
    return find_spec(package.replace("-", "_")) is not None


def ours(bench: Bench) -> Iterator[Item]:
    return items(bench, our_losses)


def others(bench: Bench) -> Iterator[Item]:
    for package, _ in PACKAGES.values():
        if not installed(package):
            yield Item(package, lambda: {"error": "not installed"})
    yield from items(bench, other_losses)
