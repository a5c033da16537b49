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

from modeling_siglip_ext import sigmoid_loss
from modeling_siglip_ext.training.components.grad_cache import cached_backward, split_batch
from modeling_siglip_ext.training.components.towers import whole
from modeling_siglip_ext.training.objectives.curation import CurationSettings
from modeling_siglip_ext.training.objectives.super_batch import Curation


STEPS = 20
# name: mini_batch_size, accumulated batches; with "curation" the batches are chosen out of larger ones
CASES = {
    "fsdp-plain": (None, 1),
    "fsdp-cache": (2, 1),
    "fsdp-curation": (None, 1),
    "fsdp-accumulation": (None, 2),
    "fsdp-accumulation-cache": (1, 2),
}


def shard(model: torch.nn.Module) -> torch.nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for tower in (model.vision_model, model.text_model):
        for layer in tower.encoder.layers:
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
    for step in range(STEPS):
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
                (model(**batch, return_loss=True).loss / accumulate).backward()
            else:
                chunks = split_batch(batch, mini_batch_size)
                cached_backward(model, model, chunks, sigmoid_loss, weight=1 / accumulate, sync=sync)
        optimizer.step()
        optimizer.zero_grad()
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
        state = train(build().train(), data, collate, *CASES[name], global_batch, curation)
        if int(os.environ.get("RANK", "0")) == 0:
            save_file(state, output / f"{name}.safetensors")
