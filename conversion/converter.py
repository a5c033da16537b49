"""From a checkpoint to a verified folder that `from_pretrained` loads. Memory stays near the largest array."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from modeling_siglip_ext.files import new_folder
from modeling_siglip_ext.hub.card import write_card
from modeling_siglip_ext.texts import STOCK_TEXT_LENGTH

from .checkpoint import Checkpoint
from .containers.arrays import DTYPES
from .containers.safetensors_files import SafetensorsWriter
from .containers.sources import sha256
from .errors import CheckpointError
from .model_folder.folder import choose_form, in_stock_form, model_shapes, verify_folder, write_config
from .model_folder.processor import (
    NO_RULES,
    check_same_tokens,
    check_tokenizer,
    fit_tokenizer,
    load_tokenizer,
    missing_tokenizer,
    tokenizer_of_folder,
    write_processor,
)
from .model_folder.report import ConversionReport, Origin, write_report
from .plan import AnyConfig, NewSizes, check_shapes, resized, vision_of
from .released.cards import conversion_card
from .resize import describe_changes
from .transfer import write_tensors


FORMATS = ("native", "ext")
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
    """

    form: str | None = None
    dtype: str = "float32"
    max_shard_size: str = "5GB"
    allow_nonfinite: bool = False
    tokenizer: str | None = None
    rules: str | None = None
    zero_bias: bool = False


@dataclass(frozen=True)
class Result:
    """What a conversion made: its report, and what the user should know."""

    report: ConversionReport
    remarks: list[str] = field(default_factory=list)


def add_processor(folder: Path, config: AnyConfig, checkpoint: Checkpoint, options: Options) -> str | None:
    """Write processor and tokenizer; returns what the user should know where there is no tokenizer."""
    vision, text = vision_of(config), getattr(config, "text_config", None)
    wanted, images = checkpoint.tokenizer, checkpoint.images
    if text is None:
        if options.tokenizer is not None or options.rules is not None:
            raise CheckpointError("--tokenizer and --text_rules have no effect: this checkpoint is an image tower")
        write_processor(folder, vision, None, images)
        return None
    length = checkpoint.text_length or text.max_position_embeddings
    own = checkpoint.tokenizer_folder if options.tokenizer is None else None
    if own is not None and checkpoint.tokenizer_ready and options.rules is None:
        tokenizer = tokenizer_of_folder(own)
        tokenizer.model_max_length = length
        write_processor(folder, vision, tokenizer, images)
        check_same_tokens(folder, tokenizer, length, text.vocab_size)
        return None
    tokenizer, rules = None, options.rules or (wanted.rules if wanted else None)
    if options.tokenizer is not None:
        if rules is None:
            raise CheckpointError("--text_rules is needed: this checkpoint is not in the catalogue (v1, v2 or bert)")
        tokenizer = load_tokenizer(options.tokenizer)
    elif own is not None and rules is not None:
        tokenizer = tokenizer_of_folder(own)
    elif wanted is not None:
        try:
            tokenizer = load_tokenizer(wanted.repo, local_only=True)
        except CheckpointError as error:
            logger.info("%s", error)
    if tokenizer is None and options.rules is not None:
        raise CheckpointError("--text_rules has no effect without a tokenizer: name one with --tokenizer")
    if tokenizer is None or rules is None:
        write_processor(folder, vision, None, images)
        return missing_tokenizer(wanted) if own is None else NO_RULES
    write_processor(folder, vision, fit_tokenizer(tokenizer, rules, length), images)
    check_tokenizer(folder, rules, length, text.vocab_size)
    return None


def write_folder(
    checkpoint: Checkpoint, folder: Path, name: str, options: Options, config: AnyConfig
) -> tuple[ConversionReport, str | None]:
    """Fill a folder and verify it.

    Args:
        folder: Where it is written.
        name: What it will be called.
        config: The model's configuration at the wanted sizes.

    Returns:
        The report, and what the user should know where there is no tokenizer.
    """
    loss = getattr(config, "loss_type", None)
    changes = describe_changes(checkpoint.config, config)
    config, native = choose_form(config, options.form, options.zero_bias)
    plan = checkpoint.plan(config)
    with ThreadPoolExecutor(1) as pool:
        write_config(plan.config, folder, options.dtype, native, loss)
        _, shapes = model_shapes(folder)
        check_shapes(plan, checkpoint.arrays, shapes)
        digest = pool.submit(sha256, checkpoint.source.path)  # reads beside the work; hashing leaves Python free
        with SafetensorsWriter(folder, shapes, DTYPES[options.dtype], options.max_shard_size) as writer:
            nonfinite = write_tensors(plan, checkpoint.arrays, writer, allow_nonfinite=options.allow_nonfinite)
        remark = add_processor(folder, plan.config, checkpoint, options)
        if native and not in_stock_form(folder):  # beside its tokenizer, which stock form would lose
            if options.form == "native":
                raise CheckpointError("--format native would lose this NaFlex model's tokenizer: leave it out")
            native = False
        files = {path.name: pool.submit(sha256, path) for path in sorted(folder.glob("*.safetensors"))}
        differences, class_name = verify_folder(folder, plan, checkpoint.arrays)
        report = ConversionReport(
            source=Origin(checkpoint.source.name, digest.result()),
            class_name=class_name,
            format="native" if native else "ext",
            dtype=options.dtype,
            loss=loss,
            parameters=sum(torch.Size(shape).numel() for shape in shapes.values()),
            tokenizer=remark is None if getattr(config, "text_config", None) is not None else None,
            catalogue=checkpoint.catalogue,
            licence=checkpoint.licence,
            layout=checkpoint.layout,
            changes=changes,
            left_out=plan.left_out,
            nonfinite=nonfinite,
            verified=True,
            files={path: found.result() for path, found in files.items()},
            tensors=differences,
        )
    write_report(folder, report)
    write_card(folder, conversion_card(folder, name, report, checkpoint.images.resample))
    return report, remark


def convert(
    checkpoint: Checkpoint, out: str | Path, options: Options | None = None, sizes: NewSizes | None = None
) -> Result:
    """Write the folder `out` and verify it; it appears complete and verified or not at all.

    Args:
        checkpoint: See `open_checkpoint`.
        out: A folder that is not there yet.
        options: How it is written.
        sizes: Other sizes than the checkpoint's.

    Raises:
        FileExistsError: `out` exists.
        CheckpointError: The checkpoint cannot become this model.
        VerificationError: The result differs from its source.
    """
    options = options or Options()
    config = resized(checkpoint.config, sizes or NewSizes())
    name = checkpoint.source.name
    try:
        with new_folder(out) as folder:
            report, remark = write_folder(checkpoint, folder, Path(out).name, options, config)
    except CheckpointError as error:
        if name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error
    remarks = [*checkpoint.remarks, *([] if remark is None else [remark])]
    if options.zero_bias:
        remarks.append(
            "this model was trained with the softmax loss and now has a logit bias of 0: its logits and softmax "
            "probabilities are the original's, its sigmoid scores are not calibrated"
        )
    text_length = getattr(getattr(config, "text_config", None), "max_position_embeddings", STOCK_TEXT_LENGTH)
    if report.format == "native" and text_length != STOCK_TEXT_LENGTH:
        remarks.append(
            f"this model takes texts of {text_length} tokens. The zero-shot pipeline of transformers pads to "
            f"{STOCK_TEXT_LENGTH} unless told: pass max_length={text_length}"
        )
    return Result(report, remarks)
