import pytest
import torch
import torch.nn.functional as F

from modeling_siglip_ext.losses import sigmoid_loss
from modeling_siglip_ext.training.studies.some_negatives import sigmoid_loss_of_some_negatives


def batch(pairs):
    generator = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(pairs, 6, generator=generator, dtype=torch.float64)) for _ in range(2))
    return images, texts, torch.tensor(2.3).double().log(), torch.tensor(0.3).double()


@pytest.mark.parametrize("choice", ["random", "easiest", "hardest"])
def test_all_negatives_are_the_loss(choice):
    for ids in (None, torch.arange(12) // 2):
        got = sigmoid_loss_of_some_negatives(*batch(12), share=1, choice=choice, pair_ids=ids)
        torch.testing.assert_close(got, sigmoid_loss(*batch(12), pair_ids=ids))


@pytest.mark.parametrize("choice", ["easiest", "hardest"])
def test_chosen_negatives(choice):
    images, texts, scale, bias = batch(13)
    logits = images @ texts.T * scale.exp() + bias
    expected = 0.0
    for i, row in enumerate(logits):
        negatives = F.softplus(torch.cat([row[:i], row[i + 1 :]])).sort(descending=choice == "hardest").values
        expected = expected + F.softplus(-row[i]) + negatives[:3].sum()
    got = sigmoid_loss_of_some_negatives(images, texts, scale, bias, share=0.25, choice=choice)
    torch.testing.assert_close(got, expected / 13)


def test_random_negatives():
    images, texts, scale, bias = batch(13)
    images.requires_grad_()
    losses = [
        sigmoid_loss_of_some_negatives(
            images, texts, scale, bias, share=0.5, choice="random", generator=torch.Generator().manual_seed(seed)
        )
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]
    bounds = [
        sigmoid_loss_of_some_negatives(images, texts, scale, bias, share=0.5, choice=choice)
        for choice in ("easiest", "hardest")
    ]
    assert bounds[0] < losses[0] < bounds[1]
    losses[0].backward()
    assert images.grad.isfinite().all()


def test_refused():
    with pytest.raises(ValueError, match="share"):
        sigmoid_loss_of_some_negatives(*batch(4), share=1.5, choice="random")
    with pytest.raises(ValueError, match="choice"):
        sigmoid_loss_of_some_negatives(*batch(4), share=0.5, choice="hard")
    with pytest.raises(ValueError, match="pair_ids"):
        sigmoid_loss_of_some_negatives(*batch(4), share=0.5, choice="random", pair_ids=torch.arange(3))
