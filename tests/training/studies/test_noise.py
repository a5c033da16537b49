"""Each kind of label noise touches what it names, as often as asked."""

from types import SimpleNamespace

import pytest
import torch

from modeling_siglip_ext.training.studies.noise import KINDS, add_noise


ENDS = SimpleNamespace(pad_token_id=0, eos_token_id=1)
BATCH, LENGTH, VOCABULARY = 2000, 6, 50


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_share_and_place(kind, share):
    pixels = torch.full((BATCH, 3, 2, 2), 2.0)  # outside the range of noise
    tokens = torch.arange(BATCH)[:, None].expand(-1, LENGTH) + VOCABULARY  # ids that noise cannot draw
    noisy_pixels, noisy_tokens = add_noise(
        pixels, tokens, kind, share, VOCABULARY, ENDS, torch.Generator().manual_seed(0)
    )
    changed = (noisy_pixels != pixels).flatten(1)
    assert torch.equal(changed.any(1), changed.all(1))
    assert changed.any(1).float().mean().item() == pytest.approx(share if "image" in kind else 0, abs=0.04)
    assert (noisy_pixels[changed.any(1)].abs() <= 1).all()

    drawn = (noisy_tokens < VOCABULARY).all(1)
    assert drawn.float().mean().item() == pytest.approx(share if "text" in kind else 0, abs=0.04)
    for row in noisy_tokens[drawn][:50].tolist():
        end = max(i for i, token in enumerate(row) if token != ENDS.pad_token_id)
        assert row[end] == ENDS.eos_token_id
    moved = (noisy_tokens[:, 0] != tokens[:, 0]) & ~drawn
    of_whole = (1 - share) if kind == "image_text_batch" else 1
    if "batch" in kind:
        assert moved.float().mean().item() == pytest.approx(share * of_whole, abs=0.04)
        if kind == "batch":
            assert torch.equal(noisy_tokens[:, 0].sort().values, tokens[:, 0])
    else:
        assert not moved.any()


def test_the_same_seed_gives_the_same_noise():
    pixels, tokens = torch.zeros(8, 3, 2, 2), torch.zeros(8, LENGTH, dtype=torch.long)
    one, two = (
        add_noise(pixels, tokens, "image_text_batch", 0.5, VOCABULARY, ENDS, torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_an_unknown_kind():
    with pytest.raises(ValueError, match="choose from image, text, batch"):
        add_noise(torch.zeros(1), torch.zeros(1, 2), "labels", 0.5, 3, ENDS, torch.Generator())
