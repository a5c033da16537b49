"""Writing with kept keys and values equals writing without; draws follow their probabilities; texts are scored."""

import pytest
import torch
from scipy.stats import chisquare

from modeling_siglip_ext.captioning import Sampling, generate, log_likelihoods


PROMPTS = [[], [4], [5, 6], [7, 8, 9], [10]]


def written_slowly(decoder, encoded, prompt, limit):
    """The likeliest words, all computed anew for each."""
    text = list(prompt)
    while len(text) < limit:
        ids = torch.tensor([[decoder.config.pad_token_id, *text]])
        word = decoder.output(decoder(ids, encoded)[0, -1]).argmax().item()
        if word == decoder.config.eos_token_id:
            break
        text.append(word)
    return text[len(prompt) :]


@pytest.mark.parametrize("limit", [None, 5])
def test_greedy_equals_the_full_computation(decoder, encoded, limit):
    """In a batch of prompts of several lengths, some of whose texts end early."""
    with torch.no_grad():
        decoder.output.bias[decoder.config.eos_token_id] += 3
        expected = [
            written_slowly(decoder, image[None], prompt, limit or 9) for image, prompt in zip(encoded, PROMPTS)
        ]
        lengths = set(map(len, expected))
    assert len(lengths) > 1
    assert generate(decoder, encoded, PROMPTS, max_length=limit) == expected


def test_padding_of_images_is_not_seen(decoder, encoded):
    mask = torch.arange(7) < 4
    padded = generate(decoder, encoded, PROMPTS, encoded_mask=mask.expand(5, 7))
    assert padded == generate(decoder, encoded[:, :4], PROMPTS)


def test_draws_follow_the_probabilities(decoder, encoded):
    many = encoded[:1].expand(3000, -1, -1)
    step = decoder.step(torch.tensor([0]), 0, decoder.new_cache(encoded[:1])).squeeze(0).detach() / 1.5

    def counts(**settings):
        texts = generate(decoder, many, [[]] * 3000, max_length=1, sampling=Sampling(1.5, **settings))
        words = torch.tensor([text[0] if text else decoder.config.eos_token_id for text in texts])
        return words.bincount(minlength=30).double()

    chances = step.softmax(0)
    likely = chances > 5 / 3000
    assert chisquare(counts()[likely], chances[likely] / chances[likely].sum() * counts()[likely].sum()).pvalue > 1e-3
    assert torch.equal(counts(seed=3), counts(seed=3))
    assert not torch.equal(counts(seed=3), counts(seed=4))
    order = chances.argsort(descending=True)
    assert set(counts(top_k=4).nonzero().flatten().tolist()) == set(order[:4].tolist())
    fewest = int((chances[order].cumsum(0) < 0.5).sum()) + 1
    assert set(counts(top_p=0.5).nonzero().flatten().tolist()) == set(order[:fewest].tolist())


def test_one_word_to_draw_from_is_greedy(decoder, encoded):
    assert generate(decoder, encoded, PROMPTS, sampling=Sampling(top_k=1)) == generate(decoder, encoded, PROMPTS)


def test_a_score_is_the_sum_over_counted_tokens(decoder, encoded):
    labels = torch.randint(2, 30, (5, 3, 9))
    weights = (torch.rand(5, 3, 9) < 0.6).double()
    scores = log_likelihoods(decoder, encoded, labels, weights)
    for image in range(5):
        for text in range(3):
            own = labels[image, text]
            ids = torch.cat([torch.zeros(1, dtype=torch.long), own[:-1]])[None]
            chances = decoder.output(decoder(ids, encoded[image : image + 1])[0]).log_softmax(-1)
            expected = sum(chances[place, own[place]] * weights[image, text, place] for place in range(9))
            torch.testing.assert_close(scores[image, text], expected, rtol=1e-12, atol=1e-12)


def test_no_images_have_no_captions(decoder, encoded):
    assert generate(decoder, encoded[:0], []) == generate(decoder, encoded[:0], [], sampling=Sampling()) == []


def test_bad_settings_are_refused(decoder, encoded):
    for settings, reason in (
        ({"temperature": 0}, "temperature must be above 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
    ):
        with pytest.raises(ValueError, match=reason):
            Sampling(**settings)
    with pytest.raises(ValueError, match="1 prompts for 5 images"):
        generate(decoder, encoded, [[]])
    with pytest.raises(ValueError, match="a prompt of 9 tokens leaves no room in 9"):
        generate(decoder, encoded, [[4] * 9] * 5)
