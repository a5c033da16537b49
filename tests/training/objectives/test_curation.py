"""Joint selection: running sums against the whole matrix, draws against exact chances, and what it does to noise."""

import itertools

import pytest
import torch
from torch.nn.functional import normalize, softplus

from modeling_siglip_ext.training.objectives import curation
from modeling_siglip_ext.training.objectives.curation import SIGNS, CurationSettings, Judged, PairScores, draw, select


def noisy(vectors: torch.Tensor, noise: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(vectors + noise * torch.randn(vectors.shape, generator=generator, dtype=vectors.dtype), dim=1)


def judged(vectors: torch.Tensor, noise: float, seed: int, scale: float = 3.0, bias: float = -8.0) -> Judged:
    """By a model that sees images and texts of the same things, each with noise of its own."""
    images, texts = noisy(vectors, noise, seed), noisy(vectors, noise, seed + 1)
    return Judged(images, texts, torch.tensor(scale, dtype=vectors.dtype), torch.tensor(bias, dtype=vectors.dtype))


def things(count: int, width: int = 16, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return normalize(torch.randn(count, width, generator=generator, dtype=dtype), dim=1)


def matrix(scores: PairScores) -> torch.Tensor:
    """All S_ij."""
    signs = torch.where(scores.ids[:, None] == scores.ids, 1.0, -1.0)
    total = torch.zeros(len(scores), len(scores), dtype=torch.float64)
    for sign, one in scores.judged:
        logits = one.scale.exp() * one.images @ one.texts.T + one.bias
        total += sign * softplus(-signs * logits)
    return total


def naive_select(scores: PairScores, count: int, settings: CurationSettings, generator: torch.Generator) -> list[int]:
    whole, chosen = matrix(scores), []
    for number in range(settings.chunks):
        size = count * (number + 1) // settings.chunks - count * number // settings.chunks
        logits = whole.diagonal() + whole[:, chosen].sum(1) + whole[chosen].sum(0)
        if number == 0 and settings.first_chunk == "uniform":
            logits = torch.zeros_like(logits)
        logits = logits.clone()
        logits[chosen] = -torch.inf
        chosen = chosen + draw(logits, size, settings.temperature, generator).tolist()
    return chosen


def weak_and_strong(vectors: torch.Tensor) -> tuple[Judged, Judged]:
    return judged(vectors, 0.5, 1, 2.0, -4.0), judged(vectors, 0.1, 3)


@pytest.mark.parametrize("score", SIGNS)
@pytest.mark.parametrize("paired", [False, True])
def test_running_sums_are_those_of_the_whole_matrix(score, paired, monkeypatch):
    monkeypatch.setattr(curation, "TILE", 40)  # rows of a tile end in the middle
    ids = torch.arange(45) % 30 if paired else None
    models = zip(SIGNS[score], weak_and_strong(things(45)))
    scores = PairScores([(sign, one) for sign, one in models if sign], ids)
    whole = matrix(scores)
    torch.testing.assert_close(scores.own(), whole.diagonal().clone(), rtol=0, atol=1e-12)
    members = torch.tensor([7, 0, 33, 12])
    expected = whole[:, members].sum(1) + whole[members].sum(0)
    torch.testing.assert_close(scores.beside(members), expected, rtol=0, atol=1e-12)
    for first in ("diagonal", "uniform"):
        settings = CurationSettings(chunks=5, score=score, first_chunk=first)
        found = select(scores, 22, settings, torch.Generator().manual_seed(5)).tolist()
        assert found == naive_select(scores, 22, settings, torch.Generator().manual_seed(5))
        assert len(set(found)) == 22


def test_single_precision_is_near_double():
    kinds, vectors = (torch.float64, torch.float32), things(64)
    double, single = (PairScores([(1, judged(vectors.to(kind), 0.0, 1))]) for kind in kinds)
    members = torch.arange(20)
    torch.testing.assert_close(single.beside(members).double(), double.beside(members), rtol=1e-5, atol=1e-5)


def chances(logits: torch.Tensor) -> list[float]:
    return logits.softmax(0).tolist()


def test_draws_have_their_exact_chances():
    """One of six, then two more given it: 60 outcomes, by chi-square."""
    learner, reference = weak_and_strong(things(6, 4))
    scores = PairScores([(1, learner), (-1, reference)])
    whole, settings = matrix(scores), CurationSettings(chunks=2, temperature=2.0)
    expected = {}
    first = chances(whole.diagonal() / settings.temperature)
    for i in range(6):
        logits = (whole.diagonal() + whole[:, i] + whole[i]) / settings.temperature
        logits[i] = -torch.inf
        then = chances(logits)
        for j, k in itertools.combinations([n for n in range(6) if n != i], 2):
            either = then[j] * then[k] / (1 - then[j]) + then[k] * then[j] / (1 - then[k])
            expected[i, j, k] = first[i] * either
    assert sum(expected.values()) == pytest.approx(1)
    draws, generator = 2500, torch.Generator().manual_seed(0)
    counts = dict.fromkeys(expected, 0)
    for _ in range(draws):
        i, *others = select(scores, 3, settings, generator).tolist()
        counts[(i, *sorted(others))] += 1
    frequent = [outcome for outcome, chance in expected.items() if chance * draws >= 5]
    assert len(frequent) > 20
    pairs = [(counts[outcome], draws * expected[outcome]) for outcome in frequent]
    rest = draws - sum(count for count, _ in pairs), draws - sum(wanted for _, wanted in pairs)
    square = sum((count - wanted) ** 2 / wanted for count, wanted in [*pairs, rest])
    freedom = torch.tensor(len(frequent) / 2)
    assert torch.special.gammaincc(freedom, torch.tensor(square / 2)) > 0.01


def test_at_temperature_zero_the_best_are_taken():
    scores = PairScores([(-1, judged(things(32), 0.3, 1))])
    settings = CurationSettings(score="easy_reference", chunks=1, temperature=0)
    found = select(scores, 8, settings, torch.Generator())
    assert set(found.tolist()) == set(scores.own().topk(8).indices.tolist())


def clean_share(score: str, learner: Judged) -> float:
    """Of what is chosen among 512 pairs of which 40 % have another's caption."""
    order = torch.cat([torch.arange(205).roll(1), torch.arange(205, 512)])
    judges = [
        (sign, Judged(one.images, one.texts[order], one.scale, one.bias))
        for sign, one in zip(SIGNS[score], (learner, strong(20)))
        if sign
    ]
    chosen = select(PairScores(judges), 256, CurationSettings(score=score), torch.Generator().manual_seed(3))
    return (chosen >= 205).double().mean().item()


def strong(seed: int) -> Judged:
    return judged(things(512, 32), 0.05, seed, 3.5, -16.0)


def test_choosing_cleans_with_a_weak_learner():
    weak = judged(things(512, 32), 1.0, 10, 2.3, -4.0)
    assert clean_share("learnability", weak) >= 0.80
    for learner in (weak, strong(20)):
        assert clean_share("easy_reference", learner) >= 0.85


def test_learnability_stops_cleaning_once_the_learner_equals_the_reference():
    for equal in (strong(20), strong(30)):  # the same, and another of the same strength
        assert abs(clean_share("learnability", equal) - 0.6) <= 0.06


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ratio": 0}, "curation.ratio must be above 0 and below 1"),
        ({"ratio": 1.0}, "curation.ratio must be above 0 and below 1"),
        ({"ratio": "half"}, "curation.ratio"),
        ({"chunks": 0}, "curation.chunks must be a whole number"),
        ({"chunks": 2.5}, "curation.chunks must be a whole number"),
        ({"score": "learnabilty"}, "curation.score='learnabilty': choose from learnability"),
        ({"first_chunk": "first"}, "curation.first_chunk='first': choose from diagonal, uniform"),
        ({"temperature": -1}, "curation.temperature must be a number that is not negative"),
    ],
)
def test_settings_out_of_range(changes, reason):
    with pytest.raises(ValueError, match=reason):
        CurationSettings(**changes)


def test_a_super_batch_is_whole():
    sizes = [CurationSettings(ratio=ratio).super_batch(1024) for ratio in (0.5, 0.75, 0.8)]
    assert sizes == [2048, 4096, 5120]
    assert CurationSettings(ratio=2 / 3).super_batch(8) == 24
    with pytest.raises(ValueError, match="Choose a ratio such that per_device_train_batch_size"):
        CurationSettings(ratio=0.7).super_batch(8)
