"""From a plan to a verified folder that `from_pretrained` loads. Memory stays near the largest array."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from modeling_siglip_ext import SiglipExtVisionConfig, native_config
from modeling_siglip_ext.files import new_folder
from modeling_siglip_ext.hub.card import write_card

from .containers.arrays import DTYPES, Arrays
from .containers.safetensors_files import SafetensorsWriter, read_safetensors
from .containers.sources import Source, sha256
from .errors import CheckpointError, VerificationError
from .model_folder.processor import check_tokenizer, fit_tokenizer, load_tokenizer, missing_tokenizer, write_processor
from .model_folder.report import libraries, write_report
from .plan import AnyConfig, Plan, check_shapes, for_stock_classes, vision_of
from .released.cards import conversion_card
from .released.catalogue import Tokenizer
from .transfer import compare_tensors, write_tensors


FORMATS = ("native", "ext")
STOCK_TEXT_LENGTH = 64
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How a folder is written.

    Args:
        form: "native" for the stock form, "ext" for the `siglip_ext` form, None for the stock form where possible.
        dtype: The type the tensors are stored in.
        max_shard_size: E.g. "5GB".
        allow_nonfinite: Whether NaN and infinite values are converted.
        tokenizer: Path or repository; None looks for the catalogue's in the local Hub cache.
        rules: "v1", "v2" or "bert"; None takes the catalogue's.
        zero_bias: Whether a softmax model is written in stock form with a logit bias of 0.
        resample: Of the image processor.
    """

    form: str | None = None
    dtype: str = "float32"
    max_shard_size: str = "5GB"
    allow_nonfinite: bool = False
    tokenizer: str | None = None
    rules: str | None = None
    zero_bias: bool = False
    resample: str = "bilinear"


@dataclass(frozen=True)
class Result:
    """What a conversion made: its report, and what the user should know."""

    report: dict[str, Any]
    remarks: list[str] = field(default_factory=list)


def choose_form(config: AnyConfig, form: str | None, zero_bias: bool = False) -> tuple[AnyConfig, bool]:
    """The configuration to write, and whether it is in stock form.

    Raises:
        CheckpointError: The stock form was asked for and cannot express the model.
    """
    lacks_bias = getattr(config, "loss_type", None) == "softmax" and config.logit_bias_init is None
    if zero_bias and not lacks_bias:
        raise CheckpointError("--zero-bias is for softmax models of two towers without a bias; leave it out")
    if zero_bias and form == "ext":
        raise CheckpointError("--zero-bias is for stock form: the ext form keeps a softmax model as it is")
    if form == "ext":
        return config, False
    demanded = form == "native" or zero_bias
    stock = for_stock_classes(config, drop_projection=demanded, zero_bias=zero_bias)
    if native_config(stock) is not None:
        return stock, True
    if not demanded:
        return config, False
    if lacks_bias and native_config(for_stock_classes(config, drop_projection=True, zero_bias=True)) is not None:
        raise CheckpointError("stock form demands a logit bias, which this softmax model lacks: add --zero-bias")
    raise CheckpointError("the stock classes cannot express this model; leave --format out, or use --format ext")


def auto_class(config: AnyConfig, native: bool) -> str:
    """The class that `AutoModel` makes of a configuration in that form."""
    with torch.device("meta"):
        return type(AutoModel.from_config(native_config(config) if native else config)).__name__


def write_config(config: AnyConfig, folder: Path, dtype: str, native: bool, loss_type: str | None) -> None:
    """Write `config.json`.

    Args:
        loss_type: The loss the model was trained with. Stock form has no field for it; where it is not the sigmoid
            loss it is added, so that our classes and pipeline go by it and the stock ones pass it over.
    """
    one_tower = isinstance(config, SiglipExtVisionConfig)
    config.architectures = ["SiglipExtVisionModel" if one_tower else "SiglipExtModel"]
    config.dtype = dtype
    if native and loss_type == "softmax":
        config = native_config(config)
        config.loss_type = loss_type
        config.save_pretrained(folder)
    else:
        config.save_pretrained(folder, native=native)


def model_shapes(folder: Path) -> tuple[str, dict[str, tuple[int, ...]]]:
    """The class that a folder's configuration stands for, and its tensors as they are called in the file."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.model_type.endswith("_vision_model"):
        shapes = {f"vision_model.{name.removeprefix('vision_model.')}": shape for name, shape in shapes.items()}
    return type(model).__name__, shapes


def verify_folder(folder: Path, plan: Plan, arrays: Arrays) -> tuple[dict[str, float], str]:
    """Compare a folder with the checkpoint behind a plan: the names and shapes that its class has, and every value.

    Returns:
        The largest difference of each tensor, and the name of the class.

    Raises:
        VerificationError: They disagree.
    """
    results = read_safetensors(folder)
    name, shapes = model_shapes(folder)
    wrong = {key for key in {*shapes, *results} if key not in shapes or key not in results}
    wrong |= {key for key in {*shapes} - wrong if shapes[key] != results[key].shape}
    if wrong:
        raise VerificationError(f"{name} has other tensors than the folder: {', '.join(sorted(wrong)[:5])}")
    return compare_tensors(plan, arrays, results), name


def add_tokenizer(
    folder: Path, plan: Plan, wanted: Tokenizer | None, options: Options, text_length: int | None
) -> str | None:
    """Write processor and tokenizer; returns what the user should know where there is no tokenizer."""
    vision, text = vision_of(plan.config), getattr(plan.config, "text_config", None)
    if text is None:
        write_processor(folder, vision, None, options.resample)
        return None
    rules = options.rules or (wanted.rules if wanted else None)
    tokenizer = None
    if options.tokenizer is not None:
        if rules is None:
            raise CheckpointError("--text-rules is needed: this checkpoint is not in the catalogue (v1, v2 or bert)")
        tokenizer = load_tokenizer(options.tokenizer)
    elif wanted is not None:
        try:
            tokenizer = load_tokenizer(wanted.repo, local_only=True)
        except CheckpointError as error:
            logger.info("%s", error)
    if tokenizer is None:
        write_processor(folder, vision, None, options.resample)
        if wanted is None:
            return "no tokenizer was written: a checkpoint does not contain it. Name the right one with --tokenizer"
        return missing_tokenizer(wanted)
    length = text_length or text.max_position_embeddings
    write_processor(folder, vision, fit_tokenizer(tokenizer, rules, length), options.resample)
    check_tokenizer(folder, rules, length, text.vocab_size)
    return None


def convert(
    source: Source,
    arrays: Arrays,
    plan_for: Callable[[AnyConfig], Plan],
    config: AnyConfig,
    out: str | Path,
    options: Options,
    *,
    tokenizer: Tokenizer | None = None,
    text_length: int | None = None,
    facts: dict[str, Any] | None = None,
) -> Result:
    """Write the folder `out` and verify it; it appears complete and verified or not at all.

    Args:
        source: The checkpoint.
        arrays: Its arrays, under the names that the plan's rules use.
        plan_for: Makes the plan for a configuration.
        config: The model's configuration at the wanted sizes.
        tokenizer: The one that the model's texts were cut with.
        text_length: Tokens of a text, where the text tower takes any number.
        facts: What else belongs into the report.

    Raises:
        FileExistsError: `out` exists.
        CheckpointError: The checkpoint cannot become this model.
        VerificationError: The result differs from its source.
    """
    loss_type = getattr(config, "loss_type", None)
    config, native = choose_form(config, options.form, options.zero_bias)
    plan = plan_for(config)
    with new_folder(out) as folder, ThreadPoolExecutor(1) as pool:
        write_config(plan.config, folder, options.dtype, native, loss_type)
        class_name, shapes = model_shapes(folder)
        check_shapes(plan, arrays, shapes)
        digest = pool.submit(source.sha256)  # reads beside the work; hashing leaves Python free
        with SafetensorsWriter(folder, shapes, DTYPES[options.dtype], options.max_shard_size) as writer:
            nonfinite = write_tensors(plan, arrays, writer, allow_nonfinite=options.allow_nonfinite)
        remark = add_tokenizer(folder, plan, tokenizer, options, text_length)
        files = {path.name: pool.submit(sha256, path) for path in sorted(folder.glob("*.safetensors"))}
        differences, _ = verify_folder(folder, plan, arrays)
        report = {
            "source": {"name": source.name, "sha256": digest.result()},
            "class": class_name,
            "format": "native" if native else "ext",
            "dtype": options.dtype,
            "loss": loss_type,
            "parameters": sum(torch.Size(shape).numel() for shape in shapes.values()),
            "tokenizer": remark is None if getattr(config, "text_config", None) is not None else None,
            **(facts or {}),
            "left_out": plan.left_out,
            "nonfinite": nonfinite,
            "verified": True,
            "largest_difference": max(differences.values()),
            "files": {name: found.result() for name, found in files.items()},
            "tensors": {name: {"largest_difference": value} for name, value in differences.items()},
            "libraries": libraries(),
        }
        write_report(folder, report)
        write_card(folder, conversion_card(folder, Path(out).name, report, options.resample))
    remarks = [] if remark is None else [remark]
    if options.zero_bias:
        remarks.append(
            "this model was trained with the softmax loss and now has a logit bias of 0: its logits and softmax "
            "probabilities are the original's, its sigmoid scores are not calibrated"
        )
    text_length = getattr(getattr(config, "text_config", None), "max_position_embeddings", STOCK_TEXT_LENGTH)
    if native and text_length != STOCK_TEXT_LENGTH:
        remarks.append(
            f"this model takes texts of {text_length} tokens. The zero-shot pipeline of transformers, and its "
            f"Siglip2Processor, pad to {STOCK_TEXT_LENGTH} unless told: pass max_length={text_length}"
        )
    return Result(report, remarks)
