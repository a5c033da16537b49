"""Texts without their padding: what is left out changes nothing, and is not computed."""

import pytest
import torch
from torch.nn import functional as F

from modeling_siglip_ext.captioning import log_likelihoods
from modeling_siglip_ext.captioning.unpadded import TokenPlaces, needed_tokens, without_padding


@pytest.fixture
def weights() -> torch.Tensor:
    """Of two texts to each of five images: a prefix without weight, words, padding; the last text has nothing."""
    lengths = torch.tensor([3, 9, 5, 2, 7, 4, 9, 6, 3, 0])
    places = torch.arange(9)
    return ((places < lengths[:, None]) & (places > 0)).float()


@pytest.fixture
def parallel() -> torch.Tensor:
    return torch.tensor([True, False, False, True, False, False, False, False, True, True])


@pytest.mark.parametrize("some_parallel", [False, True])
def test_needed_is_what_a_counted_token_depends_on(decoder, encoded, weights, parallel, some_parallel):
    """By gradients of the padded decoder: those of the inputs that reach a token with a weight."""
    rows = parallel if some_parallel else None
    embedded = torch.randn(10 * 9, 16, dtype=torch.float64, requires_grad=True)
    decoder.token_embedding.register_forward_hook(lambda module, inputs, output: embedded)
    states = decoder(torch.zeros(10, 9, dtype=torch.long), encoded, rows)
    (states * weights[..., None] * torch.randn_like(states)).sum().backward()
    needed = needed_tokens(weights, rows)
    assert torch.equal(embedded.grad.abs().amax(-1).view(10, 9) > 1e-12, needed)
    assert 0 < needed.sum() < needed.numel()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("length", [None, 5])
def test_states_and_gradients_are_those_of_the_padded_decoder(
    decoder, encoded, weights, parallel, length, checkpointing
):
    decoder.train().gradient_checkpointing = checkpointing
    ids, mask = torch.randint(30, (10, 9)), None
    if length is not None:
        mask = torch.ones(5, 7)
        mask[1:, length:] = 0
    for rows in (None, parallel):
        found = []
        for tokens in (None, without_padding(weights, rows)[0]):
            decoder.zero_grad()
            images = encoded.clone().requires_grad_()
            states = decoder(ids, images, rows, mask, tokens)
            counted = (weights if tokens is None else tokens.take(weights))[..., None] * states
            counted.square().sum().backward()
            found.append([counted[counted != 0], images.grad, *(one.grad for one in decoder.parameters())])
        for one, other in zip(*found):
            if one is None:  # the output layer's
                assert other is None
            else:
                torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_padding_is_not_computed(decoder, encoded, weights, parallel):
    seen = []
    decoder.layers[1].mlp.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    tokens, _ = without_padding(weights, parallel)
    states = decoder(torch.randint(30, (10, 9)), encoded, parallel, None, tokens)
    # texts 0, 3 and 8 are parallel and whole, the last one has nothing
    assert seen == [len(states)] == [9 + 9 + 5 + 9 + 7 + 4 + 9 + 6 + 9]


def test_a_batch_in_which_nothing_counts(decoder, encoded):
    """As on a rank that has no captions: every parameter has a gradient, for DDP waits for it."""
    tokens, missed = without_padding(torch.zeros(5, 9))
    states = decoder(torch.zeros(5, 9, dtype=torch.long), encoded, tokens=tokens)
    assert states.shape == (0, 16)
    assert not missed
    decoder.output(states).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in decoder.parameters())


def test_a_number_from_the_host_may_be_too_large_and_never_too_small(weights, parallel):
    needed = needed_tokens(weights, parallel)
    count = int(needed.sum())
    for more in (0, 3):
        tokens, missed = without_padding(weights, parallel, count + more)
        assert not missed
        assert torch.equal(tokens.places[:count], needed.flatten().nonzero().squeeze(1))
        assert len(tokens.places) == count + more
    assert without_padding(weights, parallel, count - 1)[1]


def test_places_go_there_and_back():
    batch = torch.randn(4, 3, 2)
    everything = TokenPlaces((4, 3))
    assert torch.equal(everything.pad(everything.take(batch)), batch)
    some = TokenPlaces((4, 3), torch.tensor([0, 4, 5, 11]))
    kept = torch.zeros(12, 1).index_fill(0, some.places, 1).view(4, 3, 1)
    assert torch.equal(some.pad(some.take(batch)), batch * kept)
    assert torch.equal(some.in_rows(2).pad(some.take(batch)), (batch * kept).view(2, 6, 2))


def test_likelihoods_are_those_of_the_padded_decoder(decoder, encoded, weights):
    labels = torch.randint(30, (5, 2, 9))
    found = log_likelihoods(decoder, encoded, labels, weights.view(5, 2, 9))
    for image in range(5):
        for text in range(2):
            own = labels[image, text]
            states = decoder(F.pad(own[:-1], (1, 0))[None], encoded[image : image + 1])[0]
            losses = F.cross_entropy(decoder.output(states), own, reduction="none")
            expected = -(losses * weights.view(5, 2, 9)[image, text]).sum()
            torch.testing.assert_close(found[image, text], expected, rtol=1e-12, atol=1e-12)
