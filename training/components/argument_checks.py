"""What transformers' training arguments may not be here: told in one line, before models and data are loaded.

Trainer finds out some of it only after loading, some after an epoch, and some never: a setting that does nothing.
"""

import importlib.util
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_token
from huggingface_hub.utils import validate_repo_id
from transformers import Trainer, TrainingArguments
from transformers.integrations import integration_utils
from transformers.optimization import get_scheduler
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import HubStrategy
from transformers.training_args import OptimizerNames, ParallelMode

from modeling_siglip_ext.files import check_output_dir


# Fields of Trainer that have one value here, and why.
MEANINGLESS = {
    "label_smoothing_factor": "pairs have no labels to smooth",
    "label_names": "pairs have no labels",
    "remove_unused_columns": "it would drop the images and captions, which forward does not name",
    "length_column_name": "texts are padded to one length",
    "include_num_input_tokens_seen": "texts are padded to one length; the logs have examples_seen",
    "average_tokens_across_devices": "the loss is a mean over images, not over tokens",
    "include_for_metrics": "compute_metrics is given the embeddings of images and texts",
    "prediction_loss_only": "the evaluation loss is computed from the embeddings",
    "batch_eval_metrics": "retrieval figures need the whole evaluation set",
    "eval_do_concat_batches": "the evaluation loss needs all embeddings in one array",
    "eval_use_gather_object": "the evaluation loss needs all embeddings in one array",
    "neftune_noise_alpha": "it is for the tuning of language models on instructions",
    "use_cache": "nothing is generated",
    "use_liger_kernel": "Liger has no kernels for these models",
    "liger_kernel_config": "Liger has no kernels for these models",
    "auto_find_batch_size": "another batch is another loss; for a large batch on a small device set mini_batch_size",
    "bf16_full_eval": "it would leave the model in bfloat16, and save it so; set bf16",
    "fp16_full_eval": "it would leave the model in float16, and save it so; set fp16",
    "logging_nan_inf_filter": "a loss that is not finite ends the run",
    "dataloader_in_order": "a resumed run would not find its place in the data",
}
# transformers 5.23 has a new name beside the old one, and fills both.
CHECKPOINTING_SWITCHES = tuple(
    name for name in ("gradient_checkpointing", "activation_checkpointing") if hasattr(TrainingArguments, name)
)
SAMPLING = ("random", "sequential")
# Fields that only some trackers read.
OF_A_TRACKER = {
    "project": ("trackio",),
    "trackio_space_id": ("trackio",),
    "trackio_bucket_id": ("trackio",),
    "trackio_static_space_id": ("trackio",),
}
AVAILABLE_AS = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
# Two of transformers, the others of torch.utils.checkpoint.checkpoint.
CHECKPOINTING = (
    "every_n_layers", "offload", "use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop",
    "context_fn",
)  # fmt: skip
WITH_OPTIMIZER = (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)
# Optimisers of transformers that choose among the model's modules, and need it.
NEED_A_MODEL = ("galore", "apollo", "lomo")
TAKE_NO_OPTIM_ARGS = ("adamw_torch", "adamw_torch_fused", "adafactor")

AT_LEAST_ONE = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "mini_batch_size",
    "mini_batch_tokens", "halve_batches_at",
    "eval_accumulation_steps", "save_total_limit", "dataloader_prefetch_factor", "ddp_bucket_cap_mb", "ddp_timeout",
    "eval_contrastive_batch_size", "group_size", "max_examples", "torch_empty_cache_steps",
)  # fmt: skip
WHOLE = ("max_steps", "seed", "data_seed", "dataloader_num_workers", "group_from_epoch", "warmup_examples")
NOT_NEGATIVE = (
    "learning_rate", "weight_decay", "vision_weight_decay", "text_weight_decay", "warmup_steps", "eval_delay",
    "dataloader_num_workers", "group_from_epoch", "warmup_examples",
)  # fmt: skip
POSITIVE = ("num_train_epochs", "adam_epsilon", "logging_steps", "eval_steps", "save_steps", "max_seconds")
FACTORS = ("vision_lr_factor", "text_lr_factor", "head_lr_factor", "layer_decay")
SEEDS = ("seed", "data_seed")


def check_values(args: TrainingArguments) -> None:
    """Check what needs nothing but the values, as they were given.

    Raises:
        ValueError: a field that has no meaning here, a number out of range, JSON or a choice that is none.
    """
    for field in fields(args):
        if field.name in MEANINGLESS:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            value = getattr(args, field.name)
            if value not in (default, False if default == "no" else default, None):
                raise ValueError(
                    f"{field.name}={value!r} has no meaning here: {MEANINGLESS[field.name]}. Leave it {default!r}"
                )
        if field.name in args._VALID_DICT_FIELDS:
            _check_json(field.name, getattr(args, field.name))
    if args.train_sampling_strategy not in SAMPLING:
        raise ValueError(
            f"train_sampling_strategy={args.train_sampling_strategy!r} has no meaning here: texts are padded to one "
            f"length. Choose from {', '.join(SAMPLING)}"
        )
    _check_numbers(args)
    _check_accelerator_config(args.accelerator_config)


def _check_json(name: str, value: Any) -> None:
    if isinstance(value, str) and value.startswith("{"):
        try:
            json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}={value!r} is not JSON: {error}") from error


def _check_numbers(args: TrainingArguments) -> None:
    def check(names: tuple[str, ...], holds: Callable[[Any], bool], what: str, remedy: str = "") -> None:
        for name in names:
            value = getattr(args, name)
            if value is None:
                continue
            if not isinstance(value, Real):
                raise ValueError(f"{name} must be a number, got {value!r}")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value}")
            if not holds(value):
                raise ValueError(f"{name} must {what}, got {value}{remedy}")

    check((*AT_LEAST_ONE, *WHOLE), lambda value: value == int(value), "be a whole number")
    check(AT_LEAST_ONE, lambda value: value >= 1, "be at least 1")
    check(NOT_NEGATIVE, lambda value: value >= 0, "not be negative")
    check(POSITIVE, lambda value: value > 0, "be positive")
    check(FACTORS, lambda value: value > 0, "be positive", "; to stop a tower's training use lock_towers")
    check(("max_grad_norm",), lambda value: value >= 0, "not be negative", "; 0 turns clipping off")
    check(("adam_beta1", "adam_beta2"), lambda value: 0 <= value < 1, "be in [0, 1)")
    check(("ema_decay", "max_bad_fraction"), lambda value: 0 <= value <= 1, "be between 0 and 1")
    check(SEEDS, lambda value: 0 <= value < 2**32, "be in [0, 2**32)")
    check(("max_steps",), lambda value: value == -1 or value >= 1, "be at least 1, or -1 for num_train_epochs")


def _check_accelerator_config(config: dict | str | AcceleratorConfig | None) -> None:
    values = config if isinstance(config, dict) else vars(config) if isinstance(config, AcceleratorConfig) else {}
    if isinstance(config, str):
        values = json.loads(config if config.startswith("{") else Path(config).read_text(encoding="utf-8"))
    known = [field.name for field in fields(AcceleratorConfig)]
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"accelerator_config: unknown setting {name!r}; known: {', '.join(known)}")
        if (name in ("split_batches", "dispatch_batches") and value) or (name == "use_seedable_sampler" and not value):
            raise ValueError(
                f"accelerator_config: {name}={value!r} would change which examples make a batch. Leave it out"
            )


def check_environment(args: Any) -> None:
    """Check what needs packages, a device, a disk or a token, once transformers has read the arguments.

    Args:
        args: `SiglipExtTrainingArguments`, a file that stands on this one.

    Raises:
        ValueError: for settings that do not go together, or do not fit the machine.
        ImportError: a package that is not installed.
        OSError: `output_dir` is no folder, or not to be written to.
    """
    _check_devices(args)
    _check_compiling(args)
    _check_checkpointing(args)
    _check_trackers(args)
    _check_schedule(args)
    _check_loader(args)
    _check_hub(args)
    check_output_dir(args.output_dir)


def _check_devices(args: Any) -> None:
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("fp16 needs an accelerator, and this run is on the CPU: use bf16 or neither")
    if args.fsdp and not args.fsdp_config.get("xla", False) and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise ValueError("fsdp needs several processes: start them with torchrun or `accelerate launch`")
    axes = [f"{kind}_size" for kind in ("tp", "cp", "sp") if getattr(args.parallelism_config, f"{kind}_size", 1) > 1]
    if axes:
        raise ValueError(f"parallelism_config: {axes[0]} splits examples, and the loss is of whole ones: leave it 1")


def _check_compiling(args: Any) -> None:
    if args.torch_compile and args.torch_compile_backend not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise ValueError(f"torch_compile_backend={args.torch_compile_backend!r}: choose from {known}")
    if args.torch_compile_mode not in (None, *COMPILE_MODES):
        raise ValueError(f"torch_compile_mode={args.torch_compile_mode!r}: choose from {', '.join(COMPILE_MODES)}")


def _check_checkpointing(args: Any) -> None:
    switch = CHECKPOINTING_SWITCHES[-1]
    given = getattr(args, f"{switch}_kwargs") or {}
    if given and not getattr(args, switch):
        raise ValueError(f"{switch}_kwargs do nothing without {switch}: set it, too")
    unknown = [name for name in given if name not in CHECKPOINTING]
    if unknown:
        raise ValueError(f"{switch}_kwargs: unknown setting {unknown[0]!r}; known: {', '.join(CHECKPOINTING)}")


def _check_trackers(args: Any) -> None:
    for name in args.report_to:
        if name not in integration_utils.INTEGRATION_TO_CALLBACK:
            known = ", ".join(["none", *integration_utils.INTEGRATION_TO_CALLBACK])
            raise ValueError(f"report_to: unknown tracker {name!r}; choose from {known}")
        available = getattr(integration_utils, f"is_{AVAILABLE_AS.get(name, name)}_available")
        if not available():
            raise ImportError(f"report_to={name}: its package is not installed. Install it, or set report_to none")
    for name, trackers in OF_A_TRACKER.items():
        default = type(args).__dataclass_fields__[name].default
        if getattr(args, name) != default and not set(trackers) & set(args.report_to):
            raise ValueError(f"{name} is for report_to={' or '.join(trackers)}: unset it, or report there")


def _check_schedule(args: Any) -> None:
    kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    if args.max_seconds is not None and args.lr_scheduler_kwargs:
        raise ValueError("lr_scheduler_kwargs do nothing with max_seconds, whose schedule is in seconds: unset them")
    if kind == "constant" and args.lr_scheduler_kwargs:
        raise ValueError("lr_scheduler_kwargs do nothing with lr_scheduler_type constant: unset them")
    try:
        get_scheduler(kind, torch.optim.SGD([torch.zeros(1)]), 1, 10, args.lr_scheduler_kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"lr_scheduler_type={kind!r} does not take lr_scheduler_kwargs={args.lr_scheduler_kwargs!r}: {error}"
        ) from error
    if args.save_strategy == "best" and args.eval_strategy == "no":
        raise ValueError("save_strategy=best never saves without an evaluation: set eval_strategy")


def check_optimizer(args: TrainingArguments) -> None:
    """Check that an optimiser of transformers can be made.

    Raises:
        ValueError: its settings are wrong, or mean nothing to it.
        ImportError: its library is missing.
    """
    name = OptimizerNames(args.optim).value
    malformed = [part for part in (args.optim_args or "").split(",") if args.optim_args and part.count("=") != 1]
    if malformed:
        raise ValueError(f"optim_args={args.optim_args!r}: {malformed[0]!r} is not of the form NAME=VALUE")
    if args.optim_args and name in TAKE_NO_OPTIM_ARGS:
        raise ValueError(f"optim={name} takes no optim_args: unset them, or choose another optimiser")
    if args.optim_target_modules is not None and not name.startswith(("galore", "apollo")):
        raise ValueError(f"optim={name} takes no optim_target_modules: unset them, or choose GaLore or APOLLO")
    try:
        Trainer.get_optimizer_cls_and_kwargs(args, None)
    except (ImportError, RuntimeError, NotImplementedError) as error:
        raise ImportError(f"optim={name}: {error}") from error
    except ValueError as error:
        if not name.startswith(NEED_A_MODEL) or "pass a" not in str(error):
            raise ValueError(f"optim={name}: {error}") from error


def _check_loader(args: Any) -> None:
    for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context", "dataloader_prefetch_factor"):
        if getattr(args, name) and args.dataloader_num_workers == 0:
            raise ValueError(f"{name} is for dataloader workers: set dataloader_num_workers, or unset it")
    if args.torch_empty_cache_steps is not None and args.in_chunks:
        raise ValueError("torch_empty_cache_steps does nothing with mini_batch_size or mini_batch_tokens: unset it")


def _check_hub(args: Any) -> None:
    if not args.push_to_hub:
        return
    if HubStrategy(args.hub_strategy) in WITH_OPTIMIZER:
        raise ValueError(
            f"hub_strategy={HubStrategy(args.hub_strategy).value!r} would publish optimiser state and pickles: use "
            "'every_save' or 'end'"
        )
    if args.hub_model_id is not None:
        validate_repo_id(args.hub_model_id)
    if (args.hub_token or get_token()) is None:
        raise ValueError(
            "push_to_hub needs a token: log in with `hf auth login`, or set HF_TOKEN or hub_token to a token that may "
            "write"
        )


def check_package(setting: str, package: str) -> None:
    """
    Raises:
        ImportError: the package that a setting needs is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{setting} needs the package {package}: pip install {package}, or unset it")


def check_shares(shares: Iterable[float]) -> None:
    """
    Raises:
        ValueError: one that is no share of training.
    """
    for share in shares:
        if not 0 < share < 1:
            raise ValueError(f"keep_at has shares of training, above 0 and below 1, got {share}")
