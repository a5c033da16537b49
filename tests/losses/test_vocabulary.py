"""The loss over a vocabulary in chunks: the values and gradients of the whole, in the memory of a chunk."""

import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from modeling_siglip_ext.losses.vocabulary import vocabulary_loss
from support.processes import run_worker


WORKER = Path(__file__).with_name("vocabulary_worker.py")

TOKENS, WIDTH, WORDS = 23, 8, 50


def batch(dtype=torch.float64):
    tensors = torch.randn(TOKENS, WIDTH), torch.randn(WORDS, WIDTH), torch.randn(WORDS)
    weights = torch.rand(TOKENS) * (torch.rand(TOKENS) < 0.7)
    states, weight, bias = (tensor.to(dtype).requires_grad_() for tensor in tensors)
    return states, weight, bias, torch.randint(WORDS, (TOKENS,)), weights.to(torch.promote_types(dtype, torch.float32))


def whole(states, weight, bias, labels, weights, label_smoothing=0.0):
    """The definition: big_vision shares the smoothing among the other words, torch among all."""
    logits = F.linear(states, weight, bias).log_softmax(-1)
    targets = torch.full_like(logits, label_smoothing / (WORDS - 1))
    targets[torch.arange(TOKENS), labels] = 1 - label_smoothing
    losses = -(targets * logits).sum(-1)
    return (losses * weights).sum(), losses


def gradients(loss, arguments):
    return torch.autograd.grad(3.7 * loss, arguments)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 5, 16, 1000, None])
def test_chunks_equal_the_whole(chunk, smoothing):
    arguments = batch()
    found = vocabulary_loss(*arguments, label_smoothing=smoothing, chunk_tokens=chunk)
    expected, losses = whole(*arguments, label_smoothing=smoothing)
    torch.testing.assert_close(found.loss, expected, rtol=1e-13, atol=0)
    counted = arguments[-1] > 0
    torch.testing.assert_close(found.token_losses[counted], losses[counted].detach(), rtol=1e-13, atol=1e-13)
    assert (found.token_losses[~counted] == 0).all()
    for one, other in zip(gradients(found.loss, arguments[:3]), gradients(expected, arguments[:3])):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("more", [0, 3, 1000])
def test_a_number_known_to_the_host_changes_nothing(more):
    """Nor does one that is too large, but for the order of sums; one that is too small makes itself heard."""
    arguments = batch()
    counted = int(arguments[-1].count_nonzero())
    assert 0 < counted < TOKENS
    expected = vocabulary_loss(*arguments, label_smoothing=0.1, chunk_tokens=5)
    found = vocabulary_loss(*arguments, label_smoothing=0.1, chunk_tokens=5, counted=counted + more)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    for one, other in zip(gradients(found.loss, arguments[:3]), gradients(expected.loss, arguments[:3])):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    assert vocabulary_loss(*arguments, counted=counted - 1).loss.isnan()


def test_large_logits_do_not_overflow():
    states, weight, bias, labels, weights = batch(torch.float32)
    found = vocabulary_loss(states * 1e3, weight, bias, labels, weights)
    torch.testing.assert_close(found.loss, whole(states * 1e3, weight, bias, labels, weights)[0])
    assert all(torch.isfinite(gradient).all() for gradient in gradients(found.loss, [states, weight, bias]))


def test_no_tokens_are_no_loss_and_no_gradient():
    states, weight, bias, labels, weights = batch()
    found = vocabulary_loss(states, weight, bias, labels, weights * 0)
    assert found.loss.item() == 0
    assert all((gradient == 0).all() for gradient in gradients(found.loss, [states, weight, bias]))


def test_only_what_is_trained_has_gradients():
    states, weight, bias, labels, weights = batch()
    found = vocabulary_loss(states, weight.detach(), bias.detach(), labels, weights)
    expected, _ = whole(states, weight, bias, labels, weights)
    torch.testing.assert_close(*(gradients(loss, [states])[0] for loss in (found.loss, expected)))
    with torch.no_grad():
        assert not vocabulary_loss(states, weight, bias, labels, weights).loss.requires_grad


def test_a_graph_that_is_kept_gives_the_same_gradients_again():
    *arguments, labels, weights = batch()
    loss = vocabulary_loss(*arguments, labels, weights).loss
    first = torch.autograd.grad(loss * 2, arguments, retain_graph=True)
    again = torch.autograd.grad(loss * 2, arguments)
    assert all(map(torch.equal, first, again))


def test_autocast_multiplies_in_bfloat16():
    arguments = batch(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = vocabulary_loss(*arguments, chunk_tokens=5)
    expected, _ = whole(*arguments)
    assert found.loss.dtype == torch.float32
    torch.testing.assert_close(found.loss, expected, rtol=1e-2, atol=0)
    for one, other in zip(gradients(found.loss, arguments[:3]), gradients(expected, arguments[:3])):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 2e-2 * other.norm()


@pytest.mark.slow
def test_compiled_it_is_the_same():
    arguments = batch()
    compiled = torch.compile(vocabulary_loss, backend="aot_eager", fullgraph=True)
    one, other = compiled(*arguments).loss, vocabulary_loss(*arguments).loss
    assert torch.equal(one, other)
    for first, second in zip(gradients(one, arguments[:3]), gradients(other, arguments[:3])):
        torch.testing.assert_close(first, second, rtol=1e-14, atol=1e-14)


def test_shapes_that_do_not_fit_are_refused():
    states, weight, bias, labels, weights = batch()
    with pytest.raises(ValueError, match="23 states need as many labels and weights"):
        vocabulary_loss(states, weight, bias, labels[1:], weights)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_is_that_of_a_chunk(dtype):
    """256,000 words, 64 captions of 3 tokens: their logits take five times what is held at once.

    In a process of its own: where others have left room in theirs, nothing seems to grow.
    """
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("only Linux tells a process's peak")
    grown, logits, gradient = map(int, run_worker(WORKER, dtype).split())
    assert 0.9 * logits <= grown <= 1.5 * logits + 3 * gradient
