"""All implementations of the losses on the device, against the papers' expressions in float64 on a CPU."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modeling_siglip_ext.losses import sigmoid_loss, softmax_loss
from modeling_siglip_ext.losses.checks import IMPLEMENTATIONS


LOSSES = [sigmoid_loss, softmax_loss]
NAMES = ("value", "images", "texts", "scale", "bias")
# of embeddings' gradients, of the value and the head's
TOLERANCES = {
    torch.float64: (1e-11, 1e-11),
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (1e-2, 5e-3),
    torch.float16: (5e-3, 1e-3),
}


def batch(pairs, width=24, head=(10.0, -10.0)):
    generator = torch.Generator().manual_seed(pairs)
    images, noise = (torch.randn(pairs, width, generator=generator, dtype=torch.float64) for _ in range(2))
    images, texts = F.normalize(images), F.normalize(images + 2 * noise)
    return [images, texts, *(torch.tensor(number, dtype=torch.float64) for number in (np.log(head[0]), head[1]))]


def rounded(arguments, dtype):
    """Embeddings in the dtype, and a head in float32 or better."""
    return [x.to(dtype if x.ndim else torch.promote_types(dtype, torch.float32)) for x in arguments]


def value_and_gradients(loss, arguments, **options):
    arguments = [x.detach().clone().requires_grad_() for x in arguments]
    value = loss(*arguments, **options)
    value.backward()
    return [value.detach(), *(x.grad for x in arguments)]


def assert_close(got, expected, tolerances):
    embeddings, head = tolerances
    for name, one, other in zip(NAMES, got, expected):
        one, other = one.double().cpu(), other.double().cpu()
        error = (one - other).norm() / other.norm().clamp(min=1e-2)
        assert error <= (embeddings if other.ndim else head), f"{name}: {error:.1e}"


@pytest.mark.parametrize("with_ids", [False, True], ids=["diagonal", "ids"])
@pytest.mark.parametrize("pairs", [1, 7, 129, 1000])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_float64(loss, implementation, dtype, pairs, with_ids, device):
    if implementation == "triton" and (dtype == torch.float64 or device.type == "cpu"):
        pytest.skip("the kernels are for GPUs, and have no float64")
    arguments = rounded(batch(pairs), dtype)
    ids = torch.arange(pairs) // 3 if with_ids else None
    expected = value_and_gradients(loss, [x.double() for x in arguments], implementation="eager", pair_ids=ids)
    on_device = [x.to(device) for x in arguments]
    ids = None if ids is None else ids.to(device)
    got = value_and_gradients(loss, on_device, implementation=implementation, pair_ids=ids)
    assert got[1].dtype == dtype
    assert_close(got, expected, TOLERANCES[dtype])


@pytest.mark.parametrize("head", [(10.0, 0.0), (117.0, -13.0), (1000.0, 0.0)])
@pytest.mark.parametrize("loss", LOSSES)
def test_heads(loss, head, device):
    """Of a trained model, and far beyond where exp overflows."""
    arguments = rounded(batch(300, head=head), torch.float32)
    expected = value_and_gradients(loss, [x.double() for x in arguments], implementation="eager")
    for implementation in ("eager", "tiled", "auto"):
        got = value_and_gradients(loss, [x.to(device) for x in arguments], implementation=implementation)
        assert_close(got, expected, [max(1e-4, 1e-6 * head[0])] * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_several_tiles(loss, dtype, device):
    """More rows and columns than a tile of a GPU has, and no multiple of it."""
    pairs = 9001 if device.type == "cuda" else 2049
    arguments = [x.to(device) for x in rounded(batch(pairs), dtype)]
    expected = value_and_gradients(loss, [x.double() for x in arguments], implementation="eager")
    for implementation in ("tiled", "auto"):
        got = value_and_gradients(loss, arguments, implementation=implementation)
        assert_close(got, expected, TOLERANCES[dtype])


@pytest.mark.parametrize("loss", LOSSES)
def test_compiled_and_under_autocast(loss, device):
    arguments = [x.to(device) for x in rounded(batch(2000), torch.float32)]
    expected = value_and_gradients(loss, arguments)
    with torch.autocast(device.type, torch.bfloat16):
        assert_close(value_and_gradients(loss, arguments), expected, (1e-6, 1e-6))
    backend = "inductor" if device.type == "cuda" else "eager"
    assert_close(value_and_gradients(torch.compile(loss, backend=backend), arguments), expected, (1e-5, 1e-5))


@pytest.mark.parametrize("loss", LOSSES)
def test_memory_is_linear_in_the_batch(loss, device):
    if device.type == "cpu":
        pytest.skip("the allocator of a GPU counts")
    pairs, width = 32768, 64
    arguments = [x.to(device).requires_grad_() for x in rounded(batch(pairs, width), torch.bfloat16)]
    loss(*arguments).backward()
    for argument in arguments:
        argument.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss(*arguments).backward()
    assert torch.cuda.max_memory_allocated() - before <= pairs**2 * 2 / 2  # half of one matrix of logits in bfloat16


@pytest.mark.parametrize("loss", LOSSES)
def test_on_a_device_that_is_not_the_current_one(loss, device):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")  # with one the current device is always that of the tensors
    arguments = rounded(batch(2000), torch.float32)
    expected = value_and_gradients(loss, [x.double() for x in arguments], implementation="eager")
    with torch.cuda.device(0):
        got = value_and_gradients(loss, [x.to("cuda:1") for x in arguments], implementation="triton")
    assert_close(got, expected, TOLERANCES[torch.float32])
