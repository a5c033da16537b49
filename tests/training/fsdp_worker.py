"""Train a tiny float64 model for 20 steps under `fully_shard`, with and without gradient cache; in one process whole.

Trainer with FSDP on a CPU silently becomes DDP, so this loop shards the model itself and asserts that it is sharded.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_outputs import ModelOutput

from modeling_siglip_ext import sigmoid_loss
from modeling_siglip_ext.captioning import CaptionDecoder, CaptionDecoderConfig
from modeling_siglip_ext.training.components.grad_cache import cached_backward, split_batch
from modeling_siglip_ext.training.components.towers import core_model, whole
from modeling_siglip_ext.training.objectives.captioning import Captioning
from modeling_siglip_ext.training.objectives.curation import CurationSettings
from modeling_siglip_ext.training.objectives.model import ObjectiveModel
from modeling_siglip_ext.training.objectives.super_batch import Curation


STEPS = 20
WEIGHT = 0.5
# name: mini_batch_size, accumulated batches; with "curation" the batches are chosen out of larger ones, with
# "captioning" a decoder trains beside the towers, with "late" in the second half alone
CASES = {
    "fsdp-plain": (None, 1),
    "fsdp-cache": (2, 1),
    "fsdp-curation": (None, 1),
    "fsdp-accumulation": (None, 2),
    "fsdp-accumulation-cache": (1, 2),
    "fsdp-captioning": (None, 1),
    "fsdp-captioning-cache": (2, 1),
    "fsdp-captioning-accumulation": (None, 2),
    "fsdp-captioning-accumulation-cache": (1, 2),
    "fsdp-captioning-late": (None, 1),
    "fsdp-captioning-late-cache": (2, 1),
    "fsdp-captioning-late-accumulation": (None, 2),
    "fsdp-captioning-late-accumulation-cache": (1, 2),
}


def captioning(starts_at: float = 0.0) -> Captioning:
    """For the towers of `build`. Its output layer is not zero, so that they learn from it in the first step."""
    torch.manual_seed(1)
    config = CaptionDecoderConfig(20, 16, 32, 2, 2, encoder_hidden_size=32, max_length=6, mask_token=True)
    decoder = CaptionDecoder(config)
    torch.nn.init.normal_(decoder.output.weight)
    objective = Captioning(decoder.double())
    objective.starts_at = starts_at
    return objective


def captioned(count: int) -> list[dict]:
    """Examples with two texts each, one of them predicted in parallel, and not as many tokens in all of them."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "pixel_values": torch.randn(3, 16, 16, generator=generator, dtype=torch.float64),
            "input_ids": torch.randint(0, 50, (8,), generator=generator),
            "caption_labels": torch.randint(1, 20, (2, 6), generator=generator),
            "caption_weights": torch.randint(0, 2, (2, 6), generator=generator).double(),
            "caption_parallel": torch.tensor([False, True]),
        }
        for _ in range(count)
    ]


def shard(model: torch.nn.Module) -> torch.nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    decoders = [part.decoder for part in model.parts.values()] if isinstance(model, ObjectiveModel) else []
    for stack in (model.vision_model.encoder, model.text_model.encoder, *decoders):
        for layer in stack.layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert isinstance(model, FSDPModule)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def train(
    model: torch.nn.Module,
    data: list[dict],
    collate: Callable[[list[dict]], dict],
    mini_batch_size: int | None,
    accumulate: int,
    global_batch: int,
    curation: Curation | None = None,
) -> dict[str, torch.Tensor]:
    """The parameters after 20 steps over `data`, whole."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1:
        shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, foreach=False)
    read = global_batch if curation is None else curation.settings.super_batch(global_batch)
    local = read // world_size
    captions = []

    def beside(outputs: ModelOutput, inputs: dict) -> torch.Tensor:
        captions.append(outputs.objective_losses["captioning"].detach())
        return WEIGHT * outputs.objective_losses["captioning"]

    for step in range(STEPS):
        asked = {}
        if isinstance(model, ObjectiveModel):
            model.activate(step / STEPS)
            asked = {"objectives": True} if model.active else {}
        for part in range(accumulate):
            first = (step * accumulate + part) * read + rank * local
            batch = collate([data[number % len(data)] for number in range(first, first + local)])
            batch.pop("return_loss")
            if curation is not None:
                batch = curation.choose(batch, embeddings, model, torch.device("cpu"), 2, (0, step))
                model.train()
            sync = part == accumulate - 1
            if mini_batch_size is None:
                if world_size > 1:
                    model.set_requires_gradient_sync(sync)
                outputs = model(**batch, return_loss=True, **asked)
                ((outputs.loss + beside(outputs, batch) if asked else outputs.loss) / accumulate).backward()
            else:
                chunks, own = split_batch(batch, mini_batch_size), {"weight": 1 / accumulate, "sync": sync}
                if asked:
                    own |= {"beside": beside, "beside_options": asked}
                cached_backward(model, core_model(model), chunks, sigmoid_loss, **own)
        optimizer.step()
        optimizer.zero_grad()
    assert not captions or sum(captions[-5:]) < sum(captions[:5]), "the decoder must have learnt"
    return {name: whole(parameter.detach()).clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def other(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


@torch.no_grad()
def embeddings(model: torch.nn.Module, chunk: dict) -> tuple[torch.Tensor, torch.Tensor]:
    outputs = model(**chunk, return_loss=False)
    return outputs.image_embeds, outputs.text_embeds


def run(
    cases: list[str],
    build: Callable[[], torch.nn.Module],
    data: list[dict],
    collate: Callable[[list[dict]], dict],
    global_batch: int,
    output: Path,
) -> None:
    """Train each case over the default process group, if there is one, and save its parameters."""
    for name in cases:
        curation = Curation(CurationSettings(chunks=3), other(build())) if "curation" in name else None
        model, rows = build(), data
        if "captioning" in name:
            model = ObjectiveModel(model, {"captioning": captioning(0.5 if "late" in name else 0.0)})
            rows = captioned(len(data))
        state = train(model.train(), rows, collate, *CASES[name], global_batch, curation)
        if int(os.environ.get("RANK", "0")) == 0:
            save_file(state, output / f"{name}.safetensors")
