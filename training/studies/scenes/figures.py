"""What a run on scenes has learnt: retrieval, captions, places of phrases, and what its frozen tokens know."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext.captioning import CaptionDecoder, TargetWriter, generate, padded
from modeling_siglip_ext.evaluation.metrics.dense import box_iou, position_r2, segmentation_miou, segmentation_probe
from modeling_siglip_ext.losses import sigmoid_loss

from ...data.scenes.captions import names_in
from ...data.scenes.scenes import CLASS_NAMES
from ...objectives.captioning import caption_loss
from .data import Part, text_tokens, tokenizer_of
from .training import normalized


EMBED_BATCH = 250


class Features:
    """What a frozen model makes of a part's images.

    Args:
        tokens: (N, 36, D), after the last norm.
        pooled: (N, D), before normalization.
    """

    def __init__(self, tokens: torch.Tensor, pooled: torch.Tensor):
        self.tokens, self.pooled = tokens, pooled

    def together(self) -> torch.Tensor:
        """The pooled vector behind each token, (N, 36, 2 D): SigLIP 2's input of dense probes."""
        return torch.cat([self.tokens, self.pooled[:, None].expand_as(self.tokens)], dim=-1)


@torch.no_grad()
def features_of(model: SiglipExtModel, part: Part, device: torch.device) -> Features:
    model.eval()
    outputs = [model.get_image_features(pixel_values=normalized(some.to(device))) for some in part.images.split(256)]
    tokens, pooled = ([getattr(one, name) for one in outputs] for name in ("last_hidden_state", "pooler_output"))
    return Features(torch.cat(tokens), torch.cat(pooled))


@torch.no_grad()
def text_embeds(model: SiglipExtModel, tokens: torch.Tensor, device: torch.device) -> torch.Tensor:
    found = [model.get_text_features(input_ids=some.to(device)).pooler_output for some in tokens.split(256)]
    return F.normalize(torch.cat(found), dim=-1)


def retrieval_figures(model: SiglipExtModel, part: Part, features: Features, device: torch.device) -> dict[str, float]:
    """`recall@1`, the mean of both ways, in which the caption of another scene is right where it is the same words;
    `sigmoid_loss` of batches of 50."""
    images, texts = F.normalize(features.pooled, dim=-1), text_embeds(model, part.tokens, device)
    same = torch.tensor([[one == other for other in part.captions] for one in part.captions], device=device)
    cosines = images @ texts.T
    right = [same.gather(1, way.argmax(1, keepdim=True)).double().mean().item() for way in (cosines, cosines.T)]
    batches = [slice(start, start + 50) for start in range(0, len(part) - 49, 50)]
    assert model.logit_bias is not None  # the sigmoid loss has one
    head = model.logit_scale, model.logit_bias
    losses = [sigmoid_loss(images[rows], texts[rows], *head).item() for rows in batches]
    return {"recall@1": sum(right) / 2, "sigmoid_loss": float(np.mean(losses))}


def name_accuracy(
    model: SiglipExtModel, part: Part, features: Features, names: Sequence[str], box_scale: int, device: torch.device
) -> float:
    """Share of scenes of one emoji whose name is the best of all names."""
    texts = text_embeds(model, text_tokens(list(names), box_scale), device)
    best = (F.normalize(features.pooled, dim=-1) @ texts.T).argmax(1).tolist()
    return float(np.mean([names[one] == caption for one, caption in zip(best, part.captions)]))


class DenseProbes:
    """Linear probes of segmentation, trained on the frozen features of a part.

    Args:
        features: of the images.
        labels: of their pixels.
    """

    def __init__(self, features: Features, labels: torch.Tensor):
        given = {"miou": features.tokens, "miou_pooled": features.together()}
        self.probes = {
            name: segmentation_probe(tokens, labels, len(CLASS_NAMES), steps=400, batch_size=32)
            for name, tokens in given.items()
        }

    def figures(self, part: Part, features: Features) -> dict[str, float]:
        """`miou` from tokens, `miou_pooled` with the pooled vector behind each, and `position_r2`."""
        given = {"miou": features.tokens, "miou_pooled": features.together()}
        figures = {name: segmentation_miou(self.probes[name], some, part.labels) for name, some in given.items()}
        return figures | {"position_r2": position_r2(features.tokens)}


@torch.no_grad()
def caption_figures(decoder: CaptionDecoder, part: Part, features: Features, box_scale: int) -> dict[str, float]:
    """`caption_loss` in nats a token, that of the caption on the next scene's image (`caption_loss_wrong`), the share
    of captions found word for word (`exact`), and that of a scene's names that stand in its caption (`names`)."""
    writer, tokens = TargetWriter(tokenizer_of(box_scale), decoder.config), features.tokens
    targets = [padded([writer.caption(caption)], decoder.config) for caption in part.captions]
    labels, weights = (torch.stack(some).to(tokens.device) for some in zip(*targets))
    losses = {
        name: caption_loss(decoder, seen, labels, weights).loss.item()
        for name, seen in (("caption_loss", tokens), ("caption_loss_wrong", tokens.roll(1, 0)))
    }
    found = written(decoder, tokens, [writer.prefixes["caption"]] * len(part), writer)
    return losses | {
        "exact": float(np.mean([one == caption for one, caption in zip(found, part.captions)])),
        "names": names_found(found, part.captions),
    }


def names_found(found: Sequence[str], captions: Sequence[str]) -> float:
    """The share of the names of all captions that stand in the caption found for the same scene."""
    pairs = [(set(names_in(one)), names_in(caption)) for one, caption in zip(found, captions)]
    return sum(name in own for own, names in pairs for name in names) / sum(len(names) for _, names in pairs)


@torch.no_grad()
def referring_figures(decoder: CaptionDecoder, part: Part, tokens: torch.Tensor, box_scale: int) -> dict[str, float]:
    """Of every name of every scene, the share whose box is found with an IoU of at least 0.5.

    Returns:
        `referring`; `referring_wrong`, read from the next scene's image; `referring_other`, the share for which the
        box of another emoji of the scene was found, where scenes have others.
    """
    writer = TargetWriter(tokenizer_of(box_scale), decoder.config)
    asked = [(scene, place) for scene, regions in enumerate(part.regions) for place in range(len(regions))]
    prompts = [writer.referring_prompt(part.regions[scene][place][0]) for scene, place in asked]
    own = torch.tensor([scene for scene, _ in asked], device=tokens.device)
    truth = np.array([part.regions[scene][place][1] for scene, place in asked])
    hits = {}
    for name, rows in (("referring", own), ("referring_wrong", (own + 1) % len(tokens))):
        texts = written(decoder, tokens[rows], prompts, writer)
        boxes = [decoder.config.text_format.read_box(text) or (0.0,) * 4 for text in texts]
        hits[name] = boxes
    figures = {name: float((box_iou(np.array(boxes), truth) >= 0.5).mean()) for name, boxes in hits.items()}
    others = [
        max(box_iou(np.array([box] * len(rest)), np.array(rest)))
        for (scene, place), box in zip(asked, hits["referring"])
        if (rest := [region[1] for number, region in enumerate(part.regions[scene]) if number != place])
    ]
    return figures | ({"referring_other": float((np.array(others) >= 0.5).mean())} if others else {})


def written(
    decoder: CaptionDecoder, tokens: torch.Tensor, prompts: Sequence[Sequence[int]], writer: TargetWriter
) -> list[str]:
    """The likeliest text after each prompt."""
    decoder.eval()
    texts: list[str] = []
    for start in range(0, len(prompts), EMBED_BATCH):
        some = slice(start, start + EMBED_BATCH)
        for ids in generate(decoder, tokens[some], prompts[some]):
            texts.append(str(writer.tokenizer.decode(ids, skip_special_tokens=True)).strip())
    return texts
