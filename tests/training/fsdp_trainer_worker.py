"""The Trainer with captioning under FSDP2 on the CPU, by torchrun; in one process without FSDP.

accelerate shards on accelerators alone and on a CPU silently takes DDP. So it is told that these processes have GPUs
until it has decided; all else is real: `fully_shard`, collectives over gloo, checkpoints.

Usage: fsdp_trainer_worker.py GLOBAL_BATCH OUTPUT_FOLDER CASE [CASE ...]
"""

import gc
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from distributed_worker import build
from fsdp_worker import captioned, captioning
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import FSDPModule
from transformers import SiglipModel

from modeling_siglip_ext.captioning import load_decoder, save_decoder
from modeling_siglip_ext.training.components.towers import whole
from modeling_siglip_ext.training.objectives.captioning import Captioning
from modeling_siglip_ext.training.objectives.self_distillation import self_distillation
from modeling_siglip_ext.training.trainer import SiglipExtTrainer
from support.workers import collate, logged, quick_arguments


SEVERAL = int(os.environ.get("WORLD_SIZE", "1")) > 1
FIRST = int(os.environ.get("RANK", "0")) == 0
STEPS = 6
# name: further arguments; with "late" captioning joins in the middle, "alone" are the towers
CASES = {
    "ours": {},
    "stock-late-cache": {"mini_batch_size": 2},
    "alone": {},
    "stock-cache": {"mini_batch_size": 1},
    "ours-accumulation": {"gradient_accumulation_steps": 2},
    "ours-accumulation-cache": {"mini_batch_size": 1, "gradient_accumulation_steps": 2},
    "ours-late": {},
    "ours-shards": {"fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"} if SEVERAL else None},
}


@contextmanager
def with_gpus() -> Generator[None]:
    """accelerate takes the processes that it has found for processes with GPUs."""
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    try:
        yield
    finally:
        os.environ.pop("ACCELERATE_USE_FSDP", None)  # accelerate sets it, for whatever comes next


def make(name: str, global_batch: int, folder: Path, objectives: dict | None = None, **changes) -> SiglipExtTrainer:
    if objectives is None:
        objectives = {} if name == "alone" else {"captioning": (captioning(0.5 if "late" in name else 0.0), 0.5)}
    usual = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": STEPS // 2, "fsdp": SEVERAL or None}
    arguments = quick_arguments(folder, global_batch, **usual | CASES[name] | changes)

    def trainer() -> SiglipExtTrainer:
        data = captioned(5 * global_batch)
        return SiglipExtTrainer(
            model=build("stock" if "stock" in name else "ours", "zero_bias"),
            args=arguments,
            train_dataset=data,
            eval_dataset=data[:global_batch],
            data_collator=collate,
            objectives=objectives,
        )

    if not SEVERAL:
        return trainer()
    assert arguments.device.type == "cpu"  # from here on accelerate knows its processes
    with with_gpus():
        return trainer()


def state_of(trainer: SiglipExtTrainer) -> dict[str, torch.Tensor]:
    """All that is trained, whole."""
    assert isinstance(trainer.model, FSDPModule) == SEVERAL
    return {name: whole(parameter.detach()).clone() for name, parameter in trainer.model.named_parameters()}


def equal(found: dict[str, torch.Tensor], state: dict[str, torch.Tensor], prefix: str) -> bool:
    """Whether tensors are, bit for bit, those of a state whose names have a prefix."""
    expected = {name.removeprefix(prefix): one for name, one in state.items() if name.startswith(prefix)}
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def train(name: str, global_batch: int, output: Path) -> SiglipExtTrainer:
    trainer = make(name, global_batch, output / name)
    trainer.train()
    state = state_of(trainer)
    published, last = output / name / "model", output / name / f"checkpoint-{STEPS}"
    trainer.save_model(str(published))
    decoders = [cast(Captioning, part).whole_decoder() for part in trainer.parts.values()]
    if FIRST:
        tower = "model." if decoders else ""
        for folder in (published,) if "shards" in name else (published, last):  # of which checkpoints hold no model
            assert equal(load_file(folder / "model.safetensors"), state, tower), folder
        assert equal(SiglipModel.from_pretrained(published).state_dict(), state, tower)
        for decoder in decoders:
            assert equal(load_file(last / "objectives.safetensors"), state, "parts.")
            save_decoder(decoder, output / name / "decoder")
            again = load_decoder(output / name / "decoder")
            assert equal(again.state_dict(), state, "parts.captioning.decoder.")
            state["captioning"] = logged(trainer, "loss_captioning")
        save_file({**state, "losses": logged(trainer, "loss")}, output / f"{name}.safetensors")
    return trainer


def resume(name: str, global_batch: int, output: Path) -> None:
    """A resumed run is the uninterrupted one, and one that loads its best checkpoint is as it was there."""
    folder = output / name
    half = folder / f"checkpoint-{STEPS // 2}"
    whole_run = load_file(output / f"{name}.safetensors")
    trainer = make(name, global_batch, folder)
    trainer.train(resume_from_checkpoint=str(half))
    state = state_of(trainer)
    assert all(torch.equal(tensor, whole_run[key]) for key, tensor in state.items())
    assert not equal(load_file(half / "objectives.safetensors"), state, "parts."), "it must have trained on"

    trainer._load_parts(half)
    assert equal(load_file(half / "objectives.safetensors"), state_of(trainer), "parts.")

    # the loss falls, so that the largest is the first
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    evaluated = {"eval_strategy": "steps", "eval_steps": STEPS // 2}
    trainer = make(name, global_batch, output / f"{name}-best", **best, **evaluated)
    trainer.train()
    assert trainer.state.best_global_step == STEPS // 2
    assert trainer.state.best_model_checkpoint is not None
    saved = Path(trainer.state.best_model_checkpoint)
    assert equal(load_file(saved / "model.safetensors"), state_of(trainer), "model.")
    assert equal(load_file(saved / "objectives.safetensors"), state_of(trainer), "parts.")


def refuse(global_batch: int, output: Path) -> None:
    """What is not right under FSDP is refused by name, and what is right is not named."""
    names = {"distillation": 1.0, "masking": 1.0}
    by_size = {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 1000}
    beside = {**self_distillation(build("stock", "default"), names), "captioning": (captioning(), 1.0)}
    for objectives, changes, reason in (
        (beside, {}, "distillation, masking: "),
        (None, {"ema_decay": 0.9}, "ema_decay does not work with FSDP"),
        (None, {"fsdp_config": by_size}, "fsdp_config: auto_wrap_policy SIZE_BASED_WRAP"),
    ):
        with pytest.raises(ValueError, match=f"^{reason}"):
            make("stock-cache", global_batch, output / "refused", objectives, **changes)


def main(global_batch: int, output: Path, cases: list[str]) -> None:
    for name in cases:
        trainer = train(name, global_batch, output)
    if SEVERAL:
        torch.distributed.barrier()  # for the first one's files
        resume(cases[0], global_batch, output)
        refuse(global_batch, output)
    gc.collect()
    trainer.end()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
