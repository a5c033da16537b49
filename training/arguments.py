"""Training arguments whose defaults suit a contrastive loss.

transformers' own defaults are made for losses that are a mean over samples; several of them make a contrastive run
wrong without a word. The ones that bite are changed here, each with its reason.
"""

import logging
import os
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from .components.argument_checks import check_environment, check_optimizer, check_package, check_shares, check_values
from .components.schedule import check_budgeted
from .components.towers import check_towers
from .optimizers import OPTIMIZERS, optimizer_class, takes_betas
from .optimizers.parameter_groups import CONVENTIONS, GroupSettings


logger = logging.getLogger(__name__)
Value = TypeVar("Value")


def option(default: Value, help: str) -> Value:
    """A field of a dataclass of arguments, with the text that `--help` shows."""
    return field(default=default, metadata={"help": help})


@dataclass
class SiglipExtTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with safe defaults for SigLIP, and the few settings SigLIP training adds.

    `per_device_train_batch_size` times the number of processes is the contrastive batch: the number of texts every
    image is compared with. `gradient_accumulation_steps` averages the gradients of several contrastive batches; it
    does not make the contrastive batch larger.

    Raises:
        ValueError: from the constructor, naming the field, when a setting is out of range.
        ImportError: for an optimiser whose library is not installed.
    """

    remove_unused_columns: bool = option(
        False, "Drop dataset columns that forward does not name (the images and captions among them)."
    )
    dataloader_drop_last: bool = option(
        True,
        "Drop the last incomplete training batch. Padding it across processes repeats samples, and a "
        "repeated sample is a false negative. Evaluation always sees every sample.",
    )
    logging_nan_inf_filter: bool = option(
        False, "Hide non-finite losses from the logs. They are what a person must see."
    )
    ddp_find_unused_parameters: bool | None = option(
        False, "Let DDP search for unused parameters at every step; both towers use theirs."
    )
    lr_scheduler_type: str = option("cosine", "Learning-rate schedule (P1: cosine to 0).")
    optim: str = field(  # no OptimizerNames: a command line would take no other name
        default=TrainingArguments.optim,
        metadata={
            "help": "scaling_vit_adafactor (SigLIP's, a quarter of AdamW's state), adamw, adamw_bf16 (first moment in "
            "bfloat16), lion (needs the extra lion), or any name of transformers' OptimizerNames."
        },
    )
    adam_beta2: float = option(
        0.95,
        "Second-moment decay of Adam, and its cap in scaling_vit_adafactor. 0.999 gives loss spikes "
        "(arXiv 2303.15343, sec. 4.6).",
    )
    mini_batch_size: int | None = option(
        None,
        "Gradient cache: run the towers on this many pairs at a time, while the loss still sees the whole "
        "per_device_train_batch_size, which it must divide. Same gradients for one more forward.",
    )
    mini_batch_tokens: int | None = option(
        None,
        "The gradient cache for NaFlex: in place of mini_batch_size as many images at a time as have this many "
        "patches with their padding, so that longer ones cost time and not memory.",
    )
    halve_batches_at: int | None = option(
        None,
        "Of NaFlex: train on a batch whose images have this many patches or more in two halves, with an update after "
        "each, as SigLIP 2 at 1,024. Either is a contrastive batch of its own; schedule and logs count the whole one.",
    )
    recompute_activations: bool = option(
        True,
        "Compute the activation of every MLP again in the backward pass instead of keeping it: the same "
        "gradients with a quarter less activation memory. Nothing changes under gradient checkpointing.",
    )
    lock_towers: list[str] = field(
        default_factory=list,
        metadata={"help": "Towers without training, gradient and optimiser state: vision (LiT), text."},
    )
    weight_decay_convention: str = option(
        "torch",
        "torch: a step takes lr x weight_decay off a kernel. big_vision: schedule x weight_decay, without "
        "the peak lr; the papers' 1e-4 is meant so. For optimizers with decoupled decay, such as AdamW.",
    )
    vision_lr_factor: float | None = option(
        None, "Factor on the learning rate of the image tower; 0.1 for a pretrained one."
    )
    text_lr_factor: float | None = option(None, "Factor on the learning rate of the text tower.")
    head_lr_factor: float | None = option(
        None,
        "Factor on the learning rate of temperature and bias. In a short run they get nowhere at the "
        "towers' rate: Adam moves the logarithm of the temperature by at most the rate at a step.",
    )
    vision_weight_decay: float | None = option(
        None, "Weight decay of the image tower; 0 for a pretrained one. Else weight_decay."
    )
    text_weight_decay: float | None = option(None, "Weight decay of the text tower. Else weight_decay.")
    layer_decay: float | None = option(
        None, "Each layer learns this factor slower than the one above it, down to the embeddings."
    )
    max_examples: int | None = option(None, "Length of the run in examples seen, in place of max_steps.")
    warmup_examples: int | None = option(None, "Length of the warm-up in examples seen, in place of warmup_steps.")
    ema_decay: float | None = option(
        None,
        "Average the weights over steps with this decay, e.g. 0.999. Evaluation uses the average, and at "
        "the end of training the model has it.",
    )
    max_bad_fraction: float = option(
        0.01, "Largest share of training samples that may be skipped as broken before the run stops."
    )
    eval_contrastive_batch_size: int = option(
        256,
        "eval_loss is the mean loss over fixed blocks of this many evaluation pairs, whatever the "
        "evaluation batch size and the number of processes. A last partial block is left out, "
        "unless it is the only one.",
    )
    keep_at: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Shares of training after which a checkpoint is kept in OUTPUT_DIR/kept, beside those of "
            "save_steps, for stages that begin there: SigLIP 2 has 0.9 (NaFlex) and 0.95 (higher resolutions)."
        },
    )
    group_size: int = option(8, "With a dataset that has groups: variants of one thing that stay together in a batch.")
    group_from_epoch: int = option(
        0,
        "First epoch (from 0) with groups in a batch. A model from scratch should learn the easy things "
        "first; a pretrained one can start with 0.",
    )
    xla_spmd: bool = option(
        False,
        "On TPUs with torch_xla: one process a host for all devices, among which the compiler shares the "
        "work. per_device_train_batch_size is then the batch of all of them.",
    )
    xla_shard_parameters: bool = option(
        False, "With xla_spmd: spread the parameters over the devices, for models that do not fit on one."
    )
    hub_overwrite: bool = option(
        False, "With push_to_hub: also push over files whose card this package did not write."
    )
    max_seconds: float | None = option(
        None,
        "Stop after this many seconds of training, with the schedule stretched to end there. Steps and "
        "epochs stay upper limits. One process only.",
    )

    def __post_init__(self):
        check_values(self)
        if self.deepspeed is not None:
            check_package("deepspeed", "deepspeed")
        if self.xla_spmd:
            _use_spmd()
        self._copy_pinned_batches_asynchronously()
        self.ddp_backend = self.ddp_backend or _backend_with_the_host(self.use_cpu or self.deepspeed is not None)
        own = self.optim if self.optim in OPTIMIZERS else None
        if own is not None:
            self.optim = TrainingArguments.optim  # transformers refuses names that are not its own
        elif self.optim not in (names := [kind.value for kind in OptimizerNames]):
            raise ValueError(f"optim={self.optim!r}: choose from {', '.join([*OPTIMIZERS, *names])}")
        super().__post_init__()
        if own is None:
            check_optimizer(self)
        else:
            optimizer_class(own, self.adam_beta1, self.adam_beta2, self.adam_epsilon)  # a missing library shows here
            self.optim = own
            for name in ("optim_args", "optim_target_modules"):
                if getattr(self, name) is not None:
                    raise ValueError(f"optim={own} takes no {name}: unset it")
        check_shares(self.keep_at)
        self._check_towers()
        self._check_mini_batch()
        self._count_in_examples()
        check_environment(self)

    def check_for_training(self) -> None:
        """Check what matters to training only, so that a Trainer can be made to evaluate.

        Raises:
            ValueError: naming the field.
        """
        if not self.dataloader_drop_last:
            raise ValueError(
                "dataloader_drop_last=False: the last training batch would be smaller, or padded with repeated "
                "samples, which are false negatives. Leave it True; evaluation sees every sample all the same"
            )
        if self.max_seconds is None:
            return
        if self.world_size > 1:
            raise ValueError(
                "max_seconds works in one process only, as clocks differ between processes; set max_steps or "
                "num_train_epochs instead"
            )
        check_budgeted(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type))

    @property
    def in_chunks(self) -> bool:
        """Whether the towers run on chunks of the contrastive batch."""
        return self.mini_batch_size is not None or self.mini_batch_tokens is not None

    def group_settings(self) -> GroupSettings:
        """What the optimiser's parameter groups follow from."""

        def given(**values: float | None) -> dict[str, float]:
            return {part: value for part, value in values.items() if value is not None}

        return GroupSettings(
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            convention=self.weight_decay_convention,
            lr_factors=given(vision=self.vision_lr_factor, text=self.text_lr_factor, head=self.head_lr_factor),
            weight_decays=given(vision=self.vision_weight_decay, text=self.text_weight_decay),
            layer_decay=self.layer_decay,
        )

    def without_effect(self) -> list[str]:
        """Those of the settings that a card would state and that the optimiser or the schedule does not read."""
        unread = [] if takes_betas(getattr(self.optim, "value", self.optim)) else ["adam_beta1", "adam_beta2"]
        kind = getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)
        return [*unread, "warmup_steps"] if kind == "constant" and self.max_seconds is None else unread

    def check_samples(self, count: int, read: int | None = None) -> None:
        """
        Args:
            count: samples of the training set.
            read: those that a process reads for a batch; `train_batch_size` unless given.

        Raises:
            ValueError: for a training set that is smaller than what is read for one batch.
        """
        batch = (read or self.train_batch_size) * self.world_size
        if count < batch:
            what = "batch" if read in (None, self.train_batch_size) else "super-batch"
            raise ValueError(
                f"the training set has {count} samples, fewer than one {what} of {batch}: lower "
                "per_device_train_batch_size"
            )

    def tell_of_short_updates(self, batches: int) -> None:
        """Warn where lengths in examples come out shorter: an epoch of so many batches ends with a smaller update."""
        short = batches % self.gradient_accumulation_steps
        if short and (self.max_examples is not None or self.warmup_examples is not None):
            logger.warning(
                "an epoch has %d batches, and its last update %d of %d: max_examples and warmup_examples count it as "
                "a whole one",
                batches,
                short,
                self.gradient_accumulation_steps,
            )

    def _copy_pinned_batches_asynchronously(self) -> None:
        """Unless `accelerator_config` says otherwise. On MPS nothing is pinned."""
        config = self.accelerator_config
        if self.dataloader_pin_memory and not torch.backends.mps.is_available() and isinstance(config, dict | None):
            self.accelerator_config = {"non_blocking": True, **(config or {})}

    def _check_towers(self) -> None:
        check_towers(self.lock_towers)
        for tower in self.lock_towers:
            for name in (f"{tower}_lr_factor", f"{tower}_weight_decay"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"lock_towers has {tower!r}, which then has no learning rate and no weight decay: unset {name}"
                    )
        if self.weight_decay_convention not in CONVENTIONS:
            raise ValueError(
                f"weight_decay_convention={self.weight_decay_convention!r}: choose from {', '.join(CONVENTIONS)}"
            )

    def _check_mini_batch(self) -> None:
        size, batch = self.mini_batch_size, self.per_device_train_batch_size
        if size is not None and batch % size:
            raise ValueError(f"mini_batch_size={size} must divide per_device_train_batch_size={batch}")
        if size is not None and self.mini_batch_tokens is not None:
            raise ValueError("mini_batch_size and mini_batch_tokens both say what a chunk is: set one of them")
        if self.in_chunks and self.deepspeed is not None:
            raise ValueError("mini_batch_size and mini_batch_tokens do not work with DeepSpeed: use DDP or FSDP2")

        if self.halve_batches_at is None:
            return
        if batch % 2:
            raise ValueError(f"halve_batches_at needs an even per_device_train_batch_size, got {batch}")
        if self.gradient_accumulation_steps > 1:
            raise ValueError(
                "halve_batches_at makes an update after half a batch, gradient_accumulation_steps one after several: "
                "unset one of them"
            )
        if self.deepspeed is not None:
            raise ValueError("halve_batches_at does not work with DeepSpeed, which makes updates of its own")

    def _count_in_examples(self) -> None:
        """Turn lengths in examples into steps of the global batch."""
        if self.max_examples is None and self.warmup_examples is None:
            return
        batch = self.per_device_train_batch_size * self.world_size * self.gradient_accumulation_steps
        if self.max_examples is not None:
            if self.max_steps > 0 and self.max_steps != self.max_examples // batch:
                raise ValueError("max_examples and max_steps both give the length of the run: set one of them")
            if self.max_examples < batch:
                raise ValueError(f"max_examples={self.max_examples} is less than one global batch of {batch}")
            self.max_steps = self.max_examples // batch
        if self.warmup_examples is not None:
            steps = -(-self.warmup_examples // batch)
            if self.warmup_steps not in (None, 0, steps):
                raise ValueError("warmup_examples and warmup_steps both give the warm-up: set one of them")
            self.warmup_steps = steps


def _backend_with_the_host(other: bool) -> str | None:
    """On several GPUs NCCL with gloo beside it; else None, which leaves it to accelerate.

    The processes tell each other a few numbers at every step (`losses/checks.py`). Over NCCL alone these would come
    back from the device, which is waited for; by gloo they stay on the host. accelerate does so under FSDP, too.

    Args:
        other: whether the processes are started for something else.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if not several or other or parse_flag_from_env("ACCELERATE_USE_CPU") or accelerator is None:
        return None
    # accelerate knows one backend alone for devices that torch has from elsewhere
    if accelerator.type in ("mps", torch._C._get_privateuse1_backend_name()):
        return None
    backends = {kind: torch.distributed.get_default_backend_for_device(kind) for kind in (accelerator.type, "cpu")}
    return ",".join(f"{kind}:{backend}" for kind, backend in backends.items())


def _use_spmd() -> None:
    try:
        from .components.xla import use_spmd
    except ImportError as error:
        raise ImportError('xla_spmd needs torch_xla: pip install "siglip-ext[tpu]"') from error
    use_spmd()
