"""From super-batches to the batches that are trained on, in every process: embed, score, choose, share out."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from typing import Any

import torch
from accelerate.utils import broadcast, gather
from torch import nn

from ..components.grad_cache import has_rows, split_batch
from ..components.towers import core_model, loss_head, whole
from ..data.reference_embeddings import REFERENCE, ReferenceEmbeddings
from ..data.samples import key_number
from .contrastive import PAIRS
from .curation import SIGNS, CurationSettings, Judged, PairScores, select


Forward = Callable[[nn.Module, dict], Sequence[torch.Tensor]]


class Curation:
    """Chooses the examples of a super-batch that are trained on.

    The loader gives each process `settings.super_batch(per_device_train_batch_size)` examples at a time. Embeddings
    are gathered and the choice is made over all of them; it follows from the seed, the step and the embeddings, not
    from the number of processes. A process trains on those of its own examples that were chosen, as many as belong to
    a batch; where it has more of them, the others go to processes that have less.

    Args:
        settings: of the choice.
        reference: a trained dual model with the sigmoid loss, for the same images and tokens as the learner. It is
            frozen, and a whole copy of it is in every process. Or what such a model, then of any kind, has made of
            the data, which the dataset puts into each batch. None with the score hard_learner, which needs none.

    Raises:
        ValueError: a score without the reference it needs, or with one that it does not read; a reference that was
            not trained with the sigmoid loss.
    """

    def __init__(self, settings: CurationSettings, reference: nn.Module | ReferenceEmbeddings | None = None):
        if settings.reads_reference != (reference is not None):
            what = "needs a reference model" if reference is None else "reads no reference model: leave it out"
            raise ValueError(f"curation.score={settings.score} {what}")
        if isinstance(reference, nn.Module):
            check_reference(reference)
            reference.requires_grad_(False).eval()
        self.settings, self.reference = settings, reference
        self.step, self.number = -1, 0
        self.scores: torch.Tensor | None = None

    def choose(
        self, inputs: dict, forward: Forward, learner: nn.Module, device: torch.device, size: int, key: tuple[int, int]
    ) -> dict:
        """The inputs of this process's batch, out of those of its super-batch.

        In one process, with the batch on the device, the device alone knows the choice. Otherwise it is waited for:
        images on the host are picked there, and how many rows go from one process to another are shapes.

        Args:
            inputs: tensors with a row for each example are reduced, lists become None; others stay.
            forward: of a model for a chunk of the inputs, gives its `image_embeds` and `text_embeds`.
            learner: as it is wrapped by DDP, FSDP or torch.compile.
            device: where the models are.
            size: examples in a chunk.
            key: seed, and step of the optimizer.

        Raises:
            ValueError: the inputs lack the embeddings of the reference that were computed before.
        """
        rows = len(inputs["input_ids"])
        chunks = split_batch({name: value for name, value in inputs.items() if name != PAIRS}, size)
        pairs = inputs.get(PAIRS)
        models = zip(SIGNS[self.settings.score], (learner, self.reference))
        judged = [
            (sign, judge(model, chunks, forward) if isinstance(model, nn.Module) else recalled(model, inputs, device))
            for sign, model in models
            if sign and model is not None
        ]
        scores = PairScores(judged, None if pairs is None else gather(pairs.to(device, non_blocking=True)))
        count = round(len(scores) * (1 - self.settings.ratio))
        chosen = select(scores, count, self.settings, self._generator(*key)).sort().values
        # Processes compute the same; should rounding have told them apart, the first one's choice counts.
        chosen = broadcast(chosen.to(device))
        own = scores.own()
        self.scores = torch.stack([own.mean(), own[chosen].mean()])
        return inputs | share_out(inputs, chosen, rows, len(scores) // rows, device)

    def check(self, batch: int, loss: str, one_graph: bool) -> None:
        """Whether a Trainer can train with it.

        Args:
            batch: `per_device_train_batch_size`.
            loss: name of the learner's contrastive loss.
            one_graph: the device runs graphs whose shapes are known before.

        Raises:
            ValueError: it cannot.
        """
        self.settings.super_batch(batch)
        if loss != "sigmoid":
            raise ValueError(f"curation scores pairs by the sigmoid loss, and this model has the {loss} loss")
        if one_graph:
            raise ValueError("curation does not work on XLA devices yet: leave it out")

    def identity(self) -> dict[str, Any]:
        """What makes a run with it another one, in terms of JSON."""
        named = {f"curation.{name}": value for name, value in asdict(self.settings).items()}
        if self.reference is None:
            return named
        if not isinstance(self.reference, nn.Module):
            return named | {"reference embeddings": self.reference.identity}
        # The first number of each parameter tells one training from another.
        firsts = [f"{name} {value.detach().flatten()[0].item()}" for name, value in self.reference.named_parameters()]
        return named | {"reference": hashlib.blake2b("\n".join(firsts).encode(), digest_size=16).hexdigest()}

    def figures(self, seen: int) -> dict[str, float]:
        """What the logs show: examples drawn for the `seen` ones that were trained on, and of the last batch the mean
        score S_ii of all of its super-batch and of those chosen."""
        figures: dict[str, float] = {"examples_drawn": self.settings.super_batch(seen)}
        if self.scores is not None:
            figures["curation_score"], figures["curation_score_chosen"] = self.scores.tolist()
        return figures

    def _generator(self, seed: int, step: int) -> torch.Generator:
        """Another one for each of the batches that a step accumulates."""
        self.number = self.number + 1 if step == self.step else 0
        self.step = step
        return torch.Generator().manual_seed(key_number(f"curation/{seed}/{step}/{self.number}"))


def read_for(curation: Curation | None, batch: int) -> int:
    """Examples that are read for a batch of so many."""
    return batch if curation is None else curation.settings.super_batch(batch)


def check_reference(model: nn.Module) -> None:
    """
    Raises:
        ValueError: the model was not trained with the sigmoid loss.
    """
    loss = getattr(getattr(model, "config", None), "loss_type", "sigmoid")
    if getattr(model, "logit_bias", None) is None or loss != "sigmoid":
        raise ValueError("curation: the reference was not trained with the sigmoid loss; take one that was")


@torch.no_grad()
def judge(model: nn.Module, chunks: list[dict], forward: Forward) -> Judged:
    """What a model, left in eval mode, makes of the super-batches of all processes, in float32 or better."""
    model.eval()
    embeds = [torch.cat(rows) for rows in zip(*(forward(model, chunk) for chunk in chunks))]
    wide = torch.promote_types(embeds[0].dtype, torch.float32)
    scale, bias = (whole(value.detach()).to(wide) for value in loss_head(core_model(model)) if value is not None)
    images, texts = (gather(rows.to(wide)) for rows in embeds)
    return Judged(images, texts, scale, bias)


def recalled(reference: ReferenceEmbeddings, inputs: Mapping[str, Any], device: torch.device) -> Judged:
    """What the reference made of the super-batches of all processes, when its embeddings were computed."""
    if REFERENCE not in inputs:
        raise ValueError(
            f"curation: the batch has no {REFERENCE}: give them to the dataset, ImageTextDataset(reference=...)"
        )
    images, texts = gather(inputs[REFERENCE].to(device, non_blocking=True)).unbind(1)
    scale, bias = (images.new_full((), value) for value in (reference.scale, reference.bias))
    return Judged(images, texts, scale, bias)


def share_out(
    inputs: Mapping[str, Any], chosen: torch.Tensor, rows: int, processes: int, device: torch.device
) -> dict[str, Any]:
    """The rows of this process's batch, for the tensors among the inputs that have a row for each example.

    Args:
        inputs: of this process's super-batch.
        chosen: places in the super-batches of all processes, in order, a multiple of the number of processes.
        rows: in the super-batch of each process.
        device: through which processes exchange tensors.
    """
    batch: dict[str, Any] = {name: None for name, value in inputs.items() if isinstance(value, list)}
    tensors = {name: value for name, value in inputs.items() if torch.is_tensor(value) and has_rows(value, rows)}
    if processes == 1:
        return batch | {name: value[chosen.to(value.device)] for name, value in tensors.items()}
    chosen = chosen.cpu()
    share = len(chosen) // processes
    process = torch.distributed.get_rank()
    own = [chosen[chosen // rows == number] - number * rows for number in range(processes)]
    kept, spare = own[process][:share], own[process][share:]
    widest = max(len(places) for places in own) - share
    batch |= {name: value[kept.to(value.device)] for name, value in tensors.items()}
    if widest <= 0:
        return batch
    # Places of the spare rows among those that are gathered, and which of them come here.
    offered = torch.cat([number * widest + torch.arange(max(0, len(o) - share)) for number, o in enumerate(own)])
    lacking = [max(0, share - len(places)) for places in own]
    end = list(accumulate(lacking))[process]
    taken = offered[end - lacking[process] : end]
    for name, value in tensors.items():
        sent = value.new_zeros(widest, *value.shape[1:])
        sent[: len(spare)] = value[spare.to(value.device)]
        arrived = gather(sent.to(device))[taken.to(device)]
        batch[name] = torch.cat([batch[name], arrived.to(value.device)])
    return batch
