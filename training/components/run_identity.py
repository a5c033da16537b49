"""What makes two runs one: the model's shape, the data and the settings that a checkpoint continues.

A resumed run takes weights, optimiser state and its place in the data from a checkpoint. With another model, other
rows or another batch it would go on all the same, and be neither run. Each checkpoint holds this description, and
resuming compares it.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Image
from torch import nn

from ..arguments import SiglipExtTrainingArguments
from ..data.dataset import CaptionedRows, ImageTextDataset
from ..data.fingerprint import evenly, images_digest
from ..data.image_embeddings import EmbeddingTextDataset
from ..data.streaming import HubSource, ImageTextStream
from .towers import core_model


# Settings that resuming takes from the checkpoint (the optimiser's) or that decide what a step is.
SETTINGS = (
    "gradient_accumulation_steps", "seed", "data_seed", "train_sampling_strategy", "group_size", "group_from_epoch",
    "optim", "optim_args", "learning_rate", "weight_decay", "weight_decay_convention", "adam_beta1", "adam_beta2",
    "adam_epsilon", "vision_lr_factor", "text_lr_factor", "head_lr_factor", "vision_weight_decay",
    "text_weight_decay", "layer_decay", "lock_towers", "ema_decay",
)  # fmt: skip
PROBES = 1000

Identity = dict[str, str | int | float | list | None]


def run_identity(
    model: nn.Module,
    loss: str,
    args: SiglipExtTrainingArguments,
    data: Any,
    tokenizer: Any = None,
    collator: Any = None,
) -> Identity:
    """The description of a run, in terms of JSON.

    Args:
        model: in training.
        loss: name of its loss.
        data: the training data.
        tokenizer: if there is one; it goes in as what it makes of some captions.
        collator: says, as the data may, which rows belong together.
    """
    core = core_model(model)
    shapes = [f"{name} {tuple(parameter.shape)}" for name, parameter in core.named_parameters()]
    identity: Identity = {"loss": loss, "contrastive batch": args.train_batch_size * args.world_size}
    for name in SETTINGS:
        value = getattr(args, name)
        identity[name] = getattr(value, "value", value)
    lengths = getattr(data, "naflex_lengths", None)
    identity |= {} if lengths is None else {"naflex_lengths": list(lengths)}
    identity |= {} if getattr(data, "upscale", True) else {"upscale": False}
    identity |= {} if args.halve_batches_at is None else {"halve_batches_at": args.halve_batches_at}
    identity |= _data_identity(data, args) | _pairs(data, collator) | _tokens(data, tokenizer)
    # The first difference is told, and a new tokenizer and its embeddings follow from other data.
    parameters = sum(parameter.numel() for parameter in core.parameters())
    return identity | {"parameters": parameters, "model": _digest(shapes)}


def check_same_run(checkpoint: Path, saved: Identity, now: Identity) -> None:
    """
    Raises:
        ValueError: the checkpoint is of another run; with the first difference.
    """
    different = [name for name in now if name in saved and saved[name] != now[name]]
    different += [name for name in now if name not in saved] + [name for name in saved if name not in now]
    if not different:
        return
    what = different[0]
    if isinstance(now.get(what), str) and what in DIGESTS:
        difference = f"{DIGESTS[what]} are others"
    else:
        difference = f"{what} is {saved.get(what)!r} there and {now.get(what)!r} here"
    raise ValueError(
        f"{checkpoint} is of another run: {difference}. Continue it with what it began with, or start a new run from "
        "its weights, with model_name_or_path and another output_dir"
    )


DIGESTS = {
    "model": "its parameters",
    "captions": "its training captions",
    "images": "its training images",
    "groups": "its groups",
    "regions": "its regions",
    "shards": "its shards",
    "tokens": "its tokens of the captions",
    "reference": "the parameters of its reference model",
    "reference embeddings": "the embeddings of its reference model",
}


def _data_identity(data: Any, args: SiglipExtTrainingArguments) -> Identity:
    if isinstance(data, ImageTextStream):
        identity: Identity = {
            "processes": args.world_size,  # each reads a part, and has a place in it
            "shuffle_buffer": data.shuffle_buffer,
            "caption columns": list(data.caption_columns),
            "region_column": data.region_column,
        }
        shards = getattr(data.source, "shards", None)
        if shards is not None:
            identity["shards"] = _digest(Path(shard).name for shard in shards)
        elif isinstance(data.source, HubSource):
            info = data.source.dataset.info
            identity["dataset"] = f"{info.dataset_name}/{info.config_name}/{data.source.dataset.split}"
        return identity
    identity: Identity = {"rows": len(data)} if hasattr(data, "__len__") else {}
    if isinstance(data, CaptionedRows):
        identity["captions"] = _digest("\0".join(captions) for captions in data.captions)
        if data.regions is not None:
            identity["regions"] = _digest(repr(data.regions[data.rows[index]]) for index in evenly(len(data), PROBES))
    if isinstance(data, ImageTextDataset):
        feature = data.images.features[data.image_column]
        if isinstance(feature, Image) or getattr(feature, "dtype", None) in ("string", "large_string", "binary"):
            identity["images"] = images_digest(data.images, data.image_column)
        if data.groups is not None:
            identity["groups"] = _digest(map(str, data.groups))
    if isinstance(data, EmbeddingTextDataset):
        some = (data.embeddings[data.places[index]] for index in evenly(len(data), PROBES))
        identity["images"] = _digest(embedding.numpy().tobytes() for embedding in some)
    return identity


def _pairs(data: Any, collator: Any) -> Identity:
    while hasattr(collator, "collator"):  # of one that adds to another's batches
        collator = collator.collator
    found = {
        "pair_column": getattr(data, "pair_column", None) or getattr(collator, "pair_column", None),
        "equal_captions_match": getattr(collator, "equal_captions_match", None),
    }
    return {name: value for name, value in found.items() if value}


def _tokens(data: Any, tokenizer: Any) -> Identity:
    if tokenizer is None or not isinstance(data, CaptionedRows):
        return {}
    some = [captions[0] for captions in data.captions[:PROBES]]
    return {"tokens": _digest(",".join(map(str, ids)) for ids in tokenizer(some)["input_ids"])}


def _digest(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\n")
    return digest.hexdigest()
