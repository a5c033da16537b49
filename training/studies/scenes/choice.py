"""Wrong captions, and the choice of examples by a reference that was trained on right ones."""

from dataclasses import replace
from functools import lru_cache
from typing import cast

import torch

from modeling_siglip_ext import SiglipExtModel

from ...objectives.curation import SIGNS, CurationSettings, Judged, PairScores, select
from ...objectives.model import ObjectiveModel
from .settings import SceneRun
from .training import build_model, train


OTHER_SEED = 500
CHUNKS = 8


class Choice:
    """Shuffles a share of a batch's captions among themselves, and chooses half of the examples if there is a score.

    Args:
        settings: of the run.
        device: where models are.
    """

    def __init__(self, settings: SceneRun, device: torch.device):
        self.settings = settings
        self.draw = torch.Generator().manual_seed(settings.seed)
        self.clean, self.seen = torch.zeros((), device=device), 0
        self.reference = None if settings.score is None else trained_reference(settings, device)

    def __call__(self, model: ObjectiveModel, batch: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
        rows = len(batch["input_ids"])
        wrong = torch.randperm(rows, generator=self.draw)[: round(self.settings.shuffled * rows)]
        wrong = wrong.to(batch["input_ids"].device)
        tokens = batch["input_ids"].clone()
        tokens[wrong] = tokens[wrong.roll(1)]
        # another scene may have the same caption
        clean = (tokens == batch["input_ids"]).all(1)
        batch = batch | {"input_ids": tokens}
        if self.reference is not None:
            chosen = self.chosen(cast(SiglipExtModel, model.model), self.reference, batch).to(tokens.device)
            model.train()
            batch, clean = {name: values[chosen] for name, values in batch.items()}, clean[chosen]
        self.clean += clean.sum()
        self.seen += len(clean)
        return batch

    def chosen(
        self, learner: SiglipExtModel, reference: SiglipExtModel, batch: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        assert self.settings.score is not None  # else there is no reference
        judged = [
            (sign, judge(one, batch)) for sign, one in zip(SIGNS[self.settings.score], (learner, reference)) if sign
        ]
        settings = CurationSettings(score=self.settings.score, chunks=CHUNKS)
        return select(PairScores(judged), self.settings.batch_size, settings, self.draw)

    def clean_share(self) -> float:
        """The share of clean pairs among those trained on since this was asked last."""
        share = (self.clean / max(1, self.seen)).item()
        self.clean, self.seen = torch.zeros_like(self.clean), 0
        return share


@torch.no_grad()
def judge(model: SiglipExtModel, batch: dict[str, torch.Tensor]) -> Judged:
    model.eval()
    outputs = model(pixel_values=batch["pixel_values"], input_ids=batch["input_ids"], return_loss=False)
    assert model.logit_bias is not None  # the sigmoid loss has one
    return Judged(outputs.image_embeds, outputs.text_embeds, model.logit_scale.detach(), model.logit_bias.detach())


def trained_reference(settings: SceneRun, device: torch.device) -> SiglipExtModel:
    """Towers of another seed, trained as long on right captions alone."""
    own = replace(
        settings,
        seed=settings.seed + OTHER_SEED,
        steps=settings.reference_steps,
        shuffled=0.0,
        score=None,
        reference_steps=0,
        quarters=False,
    )
    return _trained_once(own, device)


@lru_cache(maxsize=1)  # scores and shares of wrong captions have the same
def _trained_once(own: SceneRun, device: torch.device) -> SiglipExtModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(own.seed)
        model = build_model(own).to(device)
    for _ in train(model, own, device):
        pass
    return cast(SiglipExtModel, model.model.eval())
