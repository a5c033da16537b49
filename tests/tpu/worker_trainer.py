"""Train a tiny model and save what it became. Usage: worker_trainer.py OUTPUT_FOLDER CASE [CASE ...]

The same script makes the reference: with USE_TORCH_XLA=0 transformers and accelerate train with torch on the CPU.
"""

import os
import sys
from pathlib import Path

import accelerate
import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel
from modeling_siglip_ext.training.arguments import SiglipExtTrainingArguments
from modeling_siglip_ext.training.trainer import SiglipExtTrainer


XLA = os.environ.get("USE_TORCH_XLA") != "0"
STEPS, BATCH = 20, 8
SGD = {"optim": "sgd", "learning_rate": 0.05}
# Gradients far below epsilon would make a sign of rounding errors.
ADAM = {"learning_rate": 1e-3, "adam_epsilon": 1e-3}
CASES = {
    "sgd": SGD,
    "adamw": ADAM,  # the default optimiser
    "own-adamw": {**ADAM, "optim": "adamw"},
    "adafactor": {"learning_rate": 1e-3, "optim": "scaling_vit_adafactor"},
    "adamw-bf16": {**ADAM, "optim": "adamw_bf16"},
    "accumulation": {**SGD, "gradient_accumulation_steps": 2},
    "cache": {**SGD, "mini_batch_size": 4},
    "checkpointing": {**SGD, "gradient_checkpointing": True},
    "average": {**SGD, "ema_decay": 0.9},
    "bf16": {**SGD, "bf16": True},
    "spmd": {**SGD, "xla_spmd": True},
    "spmd-sharded": {**ADAM, "xla_spmd": True, "xla_shard_parameters": True},
    "spmd-cache": {**SGD, "xla_spmd": True, "mini_batch_size": 4},
    "resumed": {**ADAM, "save_strategy": "steps", "save_steps": 10},
    "spmd-resumed": {
        **ADAM,
        "xla_spmd": True,
        "xla_shard_parameters": True,
        "save_strategy": "steps",
        "save_steps": 10,
    },
}


def examples(count: int) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "pixel_values": torch.randn(3, 16, 16, generator=generator),
            "input_ids": torch.randint(0, 50, (8,), generator=generator),
        }
        for _ in range(count)
    ]


def collate(rows: list[dict]) -> dict:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} | {"return_loss": True}


def build() -> SiglipExtModel:
    torch.manual_seed(0)
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return SiglipExtModel(
        SiglipExtConfig(
            vision_config={**width, "image_size": 16, "patch_size": 8},
            text_config={**width, "vocab_size": 52, "max_position_embeddings": 8},
        )
    )


class Compilations(TrainerCallback):
    """How many graphs were compiled up to the end of each step."""

    def __init__(self):
        self.counts: list[int] = []

    def on_step_end(self, args, state, control, **kwargs):
        import torch_xla.debug.metrics as met

        self.counts.append(met.counter_value("UncachedCompile") or 0)


if os.environ.get("AS_ON_A_TPU"):  # accelerate asks what it runs on when it deals with bf16
    accelerate.state.is_torch_xla_available = lambda *args, **kwargs: True


def trainer_for(case: str, output: Path, **changes) -> SiglipExtTrainer:
    args = SiglipExtTrainingArguments(
        **{
            "output_dir": str(output / f"run-{case}"),
            "per_device_train_batch_size": BATCH,
            "max_steps": STEPS,
            "weight_decay": 0.1,
            "logging_steps": 5,
            "save_strategy": "no",
            "use_cpu": not XLA,
            "disable_tqdm": True,
            "report_to": "none",
            "dataloader_pin_memory": False,
            **{name: value for name, value in CASES[case].items() if XLA or not name.startswith("xla")},
            **changes,
        }
    )
    assert args.device.type == ("xla" if XLA else "cpu")
    return SiglipExtTrainer(model=build(), args=args, train_dataset=examples(51), data_collator=collate)


def train(case: str, output: Path) -> None:
    trainer, compilations = trainer_for(case, output), Compilations()
    if XLA:
        trainer.add_callback(compilations)
    trainer.train()
    if "resumed" in case:
        save(trainer, output / f"{case}-straight.safetensors")
        trainer = trainer_for(case, output, output_dir=str(output / f"run-{case}"))
        trainer.add_callback(compilations)
        trainer.train(resume_from_checkpoint=str(output / f"run-{case}" / "checkpoint-10"))
    metrics = trainer.evaluate(examples(21))
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    extra = {"losses": [entry["loss"] for entry in logs], "eval_loss": [metrics["eval_loss"]]}
    extra |= {name: [entry[name] for entry in logs] for name in ("positive_logit", "grad_norm_vision", "temperature")}
    extra["compilations"] = compilations.counts
    save(trainer, output / f"{case}.safetensors", extra)
    if XLA and "sharded" in case:
        check_sharded(trainer)


def save(trainer: SiglipExtTrainer, path: Path, extra: dict | None = None) -> None:
    state = {name: parameter.detach().cpu().contiguous() for name, parameter in trainer.model.named_parameters()}
    save_file(state | {name: torch.tensor(values) for name, values in (extra or {}).items()}, path)


def check_sharded(trainer: SiglipExtTrainer) -> None:
    """Matrices and what the optimiser keeps for them lie in parts on the devices."""
    import torch_xla

    optimizer = trainer.optimizer.optimizer
    for name, parameter in trainer.model.named_parameters():
        if parameter.ndim < 2:
            continue
        state = optimizer.state[parameter]
        for what, tensor in {
            "weight": parameter,
            **{k: v for k, v in state.items() if v.shape == parameter.shape},
        }.items():
            spec = torch_xla._XLAC._get_xla_sharding_spec(tensor)
            assert "devices=" in spec, f"{name} {what} is on every device: {spec!r}"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        train(name, folder)
        print(f"{name} done", flush=True)
