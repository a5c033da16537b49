"""Batches of embeddings for the losses, what JAX found for some, and the definitions to compare with."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from modeling_siglip_ext.losses import sigmoid_loss, softmax_loss


BIG_VISION = np.load(Path(__file__).parents[1] / "losses" / "big_vision.npz")
CASES = sorted({name.split("/")[0] for name in BIG_VISION.files})
LOSSES = [sigmoid_loss, softmax_loss]
HEADS = [(10.0, -10.0), (2.3, 0.0), (117.0, -13.0)]


def batch(pairs, width=16, *, temperature=10.0, bias=-10.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images, noise = (torch.randn(pairs, width, generator=generator, dtype=torch.float64) for _ in range(2))
    images, texts = F.normalize(images), F.normalize(images + 2 * noise)
    scale, bias = (torch.tensor([number], dtype=torch.float64) for number in (np.log(temperature), bias))
    return [x.to(dtype) for x in (images, texts, scale, bias)]


def value_and_gradients(loss, arguments, needs=(True, True, True, True), **options):
    arguments = [x.clone().requires_grad_(need) for x, need in zip(arguments, needs)]
    value = loss(*arguments, **options)
    value.backward()
    return [value.detach(), *(x.grad for x in arguments)]


def assert_close(got, expected, tolerance):
    for name, one, other in zip(("value", "images", "texts", "scale", "bias"), got, expected):
        error = (one - other).norm() / other.norm().clamp(min=1e-2)
        assert error <= tolerance, f"{name}: {error:.1e}"


def assert_definition(loss, with_ids, tolerance, *, dtype=torch.float64, **options):
    """Values and gradients are those of the definition in float64; with `pair_ids` where several belong together."""
    ids = torch.tensor([3, 1, 3, 7, 5, 1, 3, 2, 9, 1, 11]) if with_ids else None
    arguments = batch(11, temperature=2.3, bias=0.4)
    expected = value_and_gradients(lambda *arguments: naive(loss, arguments, ids), arguments)
    got = value_and_gradients(loss, [x.to(dtype) for x in arguments], pair_ids=ids, **options)
    assert_close(got, expected, tolerance)


def assert_any_subset(loss, arguments, *, rtol, atol, **options):
    """Each gradient is the same whichever of the others are wanted, and None where it is not."""
    everything = value_and_gradients(loss, arguments, **options)
    for mask in range(1, 16):
        needs = [bool(mask >> bit & 1) for bit in range(4)]
        got = value_and_gradients(loss, arguments, needs, **options)
        for gradient, need, expected in zip(got[1:], needs, everything[1:]):
            assert (gradient is not None) == need
            assert not need or torch.allclose(gradient, expected, rtol=rtol, atol=atol)


def assert_big_vision(case, tolerance, **options):
    """Values and gradients are what JAX found: of the sigmoid loss, where the case has a bias, and of the softmax."""
    names = [name for name in BIG_VISION.files if name.startswith(f"{case}/")]
    fixture = {name.split("/")[1]: torch.from_numpy(BIG_VISION[name]) for name in names}
    no_bias = torch.zeros(1)
    arguments = [fixture["zimg"], fixture["ztxt"], fixture["t"].log(), fixture.get("b", no_bias)]
    for loss, key, prefix in ((sigmoid_loss, "sigmoid", ""), (softmax_loss, "softmax_bidirectional", "softmax_")):
        if f"loss_{key}" in fixture:
            gradients = [fixture[f"grad_{prefix}{name}"] for name in ("zimg", "ztxt", "t")]
            gradients.append(fixture["grad_b"] if loss is sigmoid_loss else no_bias)
            got = value_and_gradients(loss, arguments, **options)
            assert_close(got, [fixture[f"loss_{key}"], *gradients], tolerance)


def naive(loss, arguments, pair_ids):
    """The definition, pair by pair."""
    images, texts, scale, bias = arguments
    ids = range(len(images)) if pair_ids is None else pair_ids.tolist()
    logits = images @ texts.T * scale.exp()
    total = 0.0
    for i, row in enumerate(ids):
        partners = sum(row == other for other in ids)
        for j, column in enumerate(ids):
            if loss is sigmoid_loss:
                z = logits[i, j] + bias.squeeze()
                total = total - torch.log(torch.sigmoid(z if row == column else -z))
            elif row == column:
                both = logits[i].log_softmax(0)[j] + logits[:, j].log_softmax(0)[i]
                total = total - both / (2 * partners)
    return total / len(ids) + (0 * bias.sum() if loss is softmax_loss else 0)
