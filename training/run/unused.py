"""Settings without effect: for each field of a recipe that can have none, when that is so.

A field that somebody gives and nothing reads is refused. Those of a bundled recipe, those of a file that the command
line has made void, and those that only decide the speed are left out and named instead: a recipe, or a habit, is for
one kind of data and start.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_siglip_ext.evaluation.data.sources import shards_of

from ..optimizers import OPTIMIZERS, takes_betas
from .fields import BUNDLED, EMOJI, SCENES, DataArguments, as_mapping
from .objective_fields import REFERENCE, REFERENCE_EMBEDDINGS, as_weights


OWN_GROUPS = ("galore", "apollo", "lomo", "adalomo")


@dataclass(frozen=True)
class Unused:
    """
    Args:
        fields: names of fields, with spaces between them, that have no effect
        when: this holds of all fields of a recipe,
        because: of the settings with these names,
        why: in words that follow "has no effect".
        harmless: they decide how fast something is, and not what comes out: left out and named wherever they stand.
    """

    fields: str
    when: Callable[[Any], Any]
    because: str
    why: str
    harmless: bool = False


def said(value: Any) -> str:
    """A choice, be it a name or a member of an enumeration."""
    return str(getattr(value, "value", value)).lower()


def given(*names: str) -> Callable[[Any], bool]:
    """Whether one of these is set; transformers before 5.23 has no `activation_checkpointing`."""
    return lambda n: any(getattr(n, name, None) for name in names)


def absent(*names: str) -> Callable[[Any], bool]:
    return lambda n: not given(*names)(n)


def is_any(name: str, *values: str) -> Callable[[Any], bool]:
    return lambda n: said(getattr(n, name)) in values


def is_none(name: str, *values: str) -> Callable[[Any], bool]:
    return lambda n: said(getattr(n, name)) not in values


def optim(*starts: str) -> Callable[[Any], bool]:
    return lambda n: said(n.optim).startswith(starts)


def streams(n: Any) -> bool:
    prop = DataArguments.is_stream.fget
    assert prop is not None
    return prop(n)


def nothing_held_out(n: Any) -> bool:
    return n.eval_split is None and (streams(n) or (n.dataset not in BUNDLED and n.eval_fraction == 0))


def counts(n: Any, *names: str) -> bool:
    """Whether one of these objectives has a weight."""
    return any(as_weights(n.objectives).get(name) for name in names)


START = "model_name_or_path"
DATA = "dataset streaming"
HELD_OUT = "dataset streaming eval_split eval_fraction"
NO_ROWS = "without held-out rows, which come from eval_fraction or eval_split"
RULES = (
    # the model
    Unused("vision_config text_config", given(START), START, f"with {START}, which brings its own configuration"),
    Unused(
        "initial_values",
        given(START, "vision_name_or_path"),
        f"{START} vision_name_or_path",
        "with a trained image tower",
    ),
    Unused(
        "loss_type logit_scale_init logit_bias_init",
        given(START),
        START,
        f"with {START}, whose loss, temperature and bias go on",
    ),
    Unused(
        "logit_bias_init", is_any("loss_type", "softmax"), "loss_type", "with loss_type=softmax, where a bias cancels"
    ),
    Unused(
        "vocab_size tokenizer_name_or_path",
        given(START, "text_name_or_path"),
        f"{START} text_name_or_path",
        "with a trained text tower, which brings its tokenizer",
    ),
    Unused(
        "vocab_size",
        given("tokenizer_name_or_path"),
        "tokenizer_name_or_path",
        "with tokenizer_name_or_path, whose tokens are counted",
    ),
    Unused("image_size", absent(START), START, f"without {START}; from scratch set vision_config.image_size"),
    Unused("naflex", absent(START), START, f"without {START}; from scratch set vision_config.naflex"),
    Unused(
        "vision_pooling",
        absent("vision_name_or_path"),
        "vision_name_or_path",
        "without vision_name_or_path; a SigLIP tower from scratch has vision_config.pooling",
    ),
    Unused(
        "text_pooling",
        absent("text_name_or_path"),
        "text_name_or_path",
        "without text_name_or_path; a SigLIP tower from scratch has text_config.pooling",
    ),
    Unused(
        "text_length",
        absent("text_name_or_path"),
        "text_name_or_path",
        "without text_name_or_path; a SigLIP tower from scratch has text_config.max_position_embeddings",
    ),
    # the data
    # what else of these a dataset has, only reading it tells
    Unused("dataset_config separator train_split", is_any("dataset", *BUNDLED), "dataset", "with a bundled dataset"),
    Unused("scenes", is_none("dataset", SCENES), "dataset", f"without dataset={SCENES}"),
    Unused("eval_split", is_any("dataset", EMOJI), "dataset", f"with {EMOJI}"),
    Unused("eval_split", lambda n: shards_of(n.dataset), "dataset", "with shards, which have no splits"),
    Unused(
        "train_split",
        lambda n: shards_of(n.dataset, n.train_split) and not (Path(n.dataset).expanduser() / n.train_split).is_dir(),
        "dataset",
        "with shards that are no folder with this subfolder",
    ),
    Unused(
        "eval_fraction",
        lambda n: n.eval_fraction and (streams(n) or n.eval_split),
        "dataset streaming eval_split",
        "with a stream, shards or eval_split",
    ),
    Unused("eval_fraction", is_any("dataset", *BUNDLED), "dataset", "with a bundled dataset, which has its splits"),
    Unused("shuffle_buffer", lambda n: not streams(n), DATA, "without a stream or shards"),
    Unused(
        "cache_gib",
        lambda n: n.image_embeddings or (streams(n) and nothing_held_out(n)),
        f"image_embeddings {HELD_OUT}",
        "with image_embeddings, or with a stream or shards and no eval_split",
    ),
    Unused(
        "group_column shuffle_captions",
        lambda n: streams(n) or n.image_embeddings,
        f"image_embeddings {DATA}",
        "with a stream, shards or image_embeddings",
    ),
    Unused(
        "naflex_lengths upscale mini_batch_tokens halve_batches_at",
        given("image_embeddings"),
        "image_embeddings",
        "with image_embeddings, where no image is cut into patches",
    ),
    Unused("group_size group_from_epoch", absent("group_column"), "group_column", "without group_column"),
    Unused(
        "data_seed train_sampling_strategy",
        lambda n: streams(n) or n.group_column,
        f"group_column {DATA}",
        "with a stream, shards or group_column, whose order follows from seed",
    ),
    # the objectives
    Unused(
        "objectives", given("image_embeddings"), "image_embeddings", "with image_embeddings, where no image is at hand"
    ),
    Unused(
        "captioning region_column regions_file",
        lambda n: not counts(n, "captioning"),
        "objectives",
        "without captioning among the objectives",
    ),
    Unused("regions_key", absent("regions_file"), "regions_file", "without regions_file"),
    Unused(
        "self_distillation",
        lambda n: not counts(n, "distillation", "masking"),
        "objectives",
        "without distillation or masking among the objectives",
    ),
    Unused(
        "objectives_from",
        lambda n: not counts(n, "captioning", "distillation", "masking"),
        "objectives",
        "without objectives beside the sigmoid loss",
    ),
    Unused(
        "keep_at",
        given("max_seconds"),
        "max_seconds",
        "with max_seconds, where nobody knows which step is the last",
    ),
    Unused(
        "curation",
        lambda n: n.image_embeddings and REFERENCE in (as_mapping("curation", n.curation) or {}),
        "image_embeddings",
        "with image_embeddings, where no image is at hand for a reference model "
        f"(curation.{REFERENCE_EMBEDDINGS} need none)",
    ),
    # the length of the run and its schedule
    Unused(
        "num_train_epochs",
        lambda n: n.max_steps > 0 or n.max_examples,
        "max_steps max_examples",
        "with max_steps or max_examples",
    ),
    Unused("max_examples", lambda n: n.max_steps > 0, "max_steps", "beside max_steps"),
    Unused("max_steps", lambda n: n.max_examples and n.max_steps > 0, "max_examples", "beside max_examples"),
    Unused("warmup_examples", given("warmup_steps"), "warmup_steps", "beside warmup_steps"),
    Unused("warmup_steps", given("warmup_examples"), "warmup_examples", "beside warmup_examples"),
    Unused(
        "warmup_steps warmup_examples",
        lambda n: not n.max_seconds and is_any("lr_scheduler_type", "constant", "reduce_lr_on_plateau", "greedy")(n),
        "lr_scheduler_type",
        "with this lr_scheduler_type; constant_with_warmup has a warm-up",
    ),
    Unused(
        "lr_scheduler_kwargs",
        lambda n: n.max_seconds or is_any("lr_scheduler_type", "constant", "constant_with_warmup")(n),
        "max_seconds lr_scheduler_type",
        "with max_seconds, or with a constant lr_scheduler_type",
    ),
    # the optimiser
    Unused(
        "adam_beta1 adam_beta2",
        lambda n: not takes_betas(said(n.optim)),
        "optim",
        "with this optim",
    ),
    Unused(
        "adam_epsilon",
        lambda n: optim("scaling_vit", "lion", "paged_lion")(n) or not takes_betas(said(n.optim)),
        "optim",
        "with this optim",
    ),
    Unused("optim_args", is_any("optim", *OPTIMIZERS, "adafactor"), "optim", "with this optim"),
    Unused(
        "optim_target_modules", lambda n: not optim("galore", "apollo")(n), "optim", "without a galore or apollo optim"
    ),
    Unused(
        "vision_lr_factor text_lr_factor head_lr_factor vision_weight_decay text_weight_decay layer_decay "
        "weight_decay_convention",
        optim(*OWN_GROUPS),
        "optim",
        "with this optim, which makes parameter groups of its own",
    ),
    Unused(
        "weight_decay_convention",
        absent("weight_decay", "vision_weight_decay", "text_weight_decay"),
        "weight_decay vision_weight_decay text_weight_decay",
        "without weight decay",
    ),
    Unused(
        "vision_lr_factor vision_weight_decay",
        given("image_embeddings"),
        "image_embeddings",
        "with image_embeddings, where there is no image tower",
    ),
    Unused(
        "mini_batch_size",
        lambda n: n.mini_batch_size and n.mini_batch_size > n.per_device_train_batch_size > 0,
        "per_device_train_batch_size",
        "with a smaller per_device_train_batch_size",
        harmless=True,
    ),
    Unused(
        "recompute_activations",
        given("gradient_checkpointing", "activation_checkpointing"),
        "gradient_checkpointing activation_checkpointing",
        "with gradient_checkpointing",
    ),
    Unused(
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs",
        absent("gradient_checkpointing", "activation_checkpointing"),
        "gradient_checkpointing activation_checkpointing",
        "without gradient_checkpointing",
    ),
    # evaluation
    Unused("per_device_eval_batch_size eval_accumulation_steps", nothing_held_out, HELD_OUT, NO_ROWS, harmless=True),
    Unused(
        "eval_contrastive_batch_size bf16_full_eval fp16_full_eval load_best_model_at_end eval_delay eval_steps",
        nothing_held_out,
        HELD_OUT,
        NO_ROWS,
    ),
    Unused("eval_steps", is_none("eval_strategy", "steps"), "eval_strategy", "without eval_strategy=steps"),
    Unused("eval_delay", is_any("eval_strategy", "no"), "eval_strategy", "with eval_strategy=no"),
    Unused(
        "metric_for_best_model greater_is_better",
        lambda n: (
            is_none("lr_scheduler_type", "reduce_lr_on_plateau", "greedy")(n)
            and (is_any("eval_strategy", "no")(n) or is_any("save_strategy", "no")(n))
        ),
        "lr_scheduler_type eval_strategy save_strategy",
        "without evaluations and checkpoints in training, the best of which is kept",
    ),
    Unused(
        "greater_is_better",
        lambda n: (
            not (n.metric_for_best_model or n.load_best_model_at_end)
            and is_none("save_strategy", "best")(n)
            and is_none("lr_scheduler_type", "reduce_lr_on_plateau", "greedy")(n)
        ),
        "metric_for_best_model load_best_model_at_end save_strategy lr_scheduler_type",
        "without metric_for_best_model",
    ),
    # checkpoints, logs, the Hub
    Unused("save_steps", is_none("save_strategy", "steps"), "save_strategy", "without save_strategy=steps"),
    Unused(
        "save_total_limit save_only_model save_on_each_node enable_jit_checkpoint",
        is_any("save_strategy", "no"),
        "save_strategy",
        "with save_strategy=no",
    ),
    Unused(
        "ignore_data_skip restore_callback_states_from_checkpoint",
        absent("resume_from_checkpoint"),
        "resume_from_checkpoint",
        "without resume_from_checkpoint",
    ),
    Unused(
        "logging_steps", is_none("logging_strategy", "steps"), "logging_strategy", "without logging_strategy=steps"
    ),
    Unused("logging_first_step", is_any("logging_strategy", "no"), "logging_strategy", "with logging_strategy=no"),
    Unused(
        "run_name project trackio_space_id trackio_bucket_id trackio_static_space_id",
        lambda n: n.report_to in (None, "none", [], ["none"]),
        "report_to",
        "without report_to",
    ),
    Unused(
        "hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision hub_overwrite",
        absent("push_to_hub"),
        "push_to_hub",
        "without push_to_hub",
    ),
    # the machine
    Unused("fsdp_config", absent("fsdp"), "fsdp", "without fsdp"),
    Unused("xla_shard_parameters", absent("xla_spmd"), "xla_spmd", "without xla_spmd"),
    Unused("liger_kernel_config", absent("use_liger_kernel"), "use_liger_kernel", "without use_liger_kernel"),
    Unused(
        "dataloader_prefetch_factor dataloader_persistent_workers dataloader_multiprocessing_context "
        "dataloader_in_order",
        absent("dataloader_num_workers"),
        "dataloader_num_workers",
        "without dataloader_num_workers",
    ),
    # of scripts that read them; what has one value here, `components/argument_checks.py` refuses with the reason
    Unused("do_train do_eval do_predict", lambda n: True, "", "on the training of image-text models"),
)


def find_unused(n: Any, names: Collection[str], defaults: Mapping[str, Any]) -> dict[str, Unused]:
    """Those of the named fields that say something and have no effect, each with its rule.

    Args:
        n: has all fields as attributes.
        defaults: of the fields; what is off by default and off says nothing.
    """

    def says(name: str) -> bool:
        value = getattr(n, name)
        return value is not None and bool(value or value != defaults[name])

    found = [(name, rule) for rule in RULES for name in rule.fields.split() if name in names and rule.when(n)]
    return {name: rule for name, rule in reversed(found) if says(name)}
