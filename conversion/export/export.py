"""A model folder to files for other runtimes: written, run, compared with the model, and only then there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel, SiglipExtTextModel, SiglipExtVisionModel
from modeling_siglip_ext.configuration_siglip_ext import is_foreign
from modeling_siglip_ext.files import new_folder
from siglip_ext_runtime.backends import OPENVINO, built_with
from siglip_ext_runtime.settings import ExportSettings

from ..errors import CheckpointError, VerificationError
from ..model_folder.folder import ModelFolder, open_folder
from .card import write_export_card
from .companions import check_tokenizer, write_companions
from .figures import Evaluate, before_and_after
from .measure import cpu_time_ratio, peak_memory
from .onnx_file import EXTERNAL_ABOVE, OPSET, check_installed, check_opset
from .parity import Judgement, compare, compare_answers
from .precisions import FORMATS, Job
from .report import ExportReport, TowerReport, write_report, write_settings
from .samples import Samples, take_samples
from .search import Bars
from .towers import DUAL, OUTPUTS, TEXT, VISION, check_towers
from .transformers_js import arrange, check_layout
from .vectors import ALONE, BATCH, TOGETHER, by_file, by_torch, embed_all, embeds_of, images_and_texts, inputs_of


Vectors = dict[str, torch.Tensor]
# least cosine in 8 bits that kept recall@1 and the nearest neighbours of a trained model; benchmarks/README.md
IN_8_BITS = 0.9999
TRANSFORMERS_JS = "transformers.js"
LAYOUTS = ("plain", TRANSFORMERS_JS)
RUNTIME = {"onnx": None, "openvino": {"openvino": OPENVINO}, "aoti": {"aoti": built_with()}}


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how near it must be.

    Args:
        towers: names of the files: "vision_model", "text_model", or "model" for both in one with their logits.
        format: "onnx", "openvino" or "aoti".
        precision: of those that the format has.
        layout: "plain", or "transformers.js" for ONNX files.
        opset: of the ONNX files, at least 20.
        external_above: bytes of weights from which they lie beside a file.
        min_cosine: the least that a cosine between a vector and its float32 one may be; 0 for no bar. None for 0.9999
            in 8 bits where images and texts are the user's own, and otherwise for no bar.
        min_agreement: the least share of equal nearest neighbours.
        images, texts: of the user's own, to calibrate and judge on; None for some that are drawn.
        evaluate: gives figures of a model and its processor, before and after, for the report; of both towers.

    Raises:
        ValueError: an unknown tower or precision, or a bar that is none.
    """

    towers: tuple[str, ...] = (VISION, TEXT)
    format: str = "onnx"
    precision: str = "fp32"
    layout: str = "plain"
    opset: int = OPSET
    external_above: int = EXTERNAL_ABOVE
    min_cosine: float | None = None
    min_agreement: float | None = None
    images: Sequence[Any] | None = None
    texts: Sequence[str] | None = None
    evaluate: Evaluate | None = None

    def __post_init__(self) -> None:
        layouts = LAYOUTS if self.format == "onnx" else LAYOUTS[:1]
        choices = (self.towers, OUTPUTS), ((self.precision,), FORMATS[self.format]), ((self.layout,), layouts)
        for names, known in choices:
            unknown = [name for name in names if name not in known]
            if unknown or not names:
                raise ValueError(f"{', '.join(unknown) or 'nothing'} is unknown; choose of {', '.join(known)}")
        for name in ("min_cosine", "min_agreement"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must be between 0 and 1")
        missing = [
            name
            for name, towers in (("images", (VISION, DUAL)), ("texts", (TEXT, DUAL)))
            if getattr(self, name) is None and set(towers) & set(self.towers)
        ]
        if self.precision == "int8-static" and missing:
            raise ValueError(f"int8-static is calibrated on {' and '.join(missing)} like those of its use: give some")
        if self.precision.startswith("int8") and not missing and self.min_cosine is None:
            object.__setattr__(self, "min_cosine", IN_8_BITS)
        if self.evaluate is not None and not {VISION, TEXT} <= set(self.towers):
            raise ValueError("figures on a data set need both towers, a file each")
        check_opset(self.opset)


def load_part(folder: ModelFolder, name: str) -> PreTrainedModel:
    """The model in float32, or of SigLIP's own towers the one that is needed, so that memory holds no more."""
    config, kind = folder.config, SiglipExtModel
    if not isinstance(config, SiglipExtConfig) or (name == VISION and not is_foreign(config.vision_config)):
        kind = SiglipExtVisionModel
    elif name == TEXT and not is_foreign(config.text_config):
        kind = SiglipExtTextModel
    return kind.from_pretrained(folder.path, dtype=torch.float32).eval()


def reference_vectors(folder: ModelFolder, samples: Samples) -> Vectors:
    """The model's own vectors in float32, by tower; one tower after the other, for the sake of memory."""
    wanted = {}
    for name in (VISION, TEXT) if samples.texts else (VISION,):
        embed = by_torch(load_part(folder, name), name)
        wanted[name] = embed_all(embed, inputs_of(samples, name), BATCH)
    if samples.texts:
        pairs = len(inputs_of(samples, DUAL))
        wanted[DUAL] = embeds_of(DUAL, {"text_embeds": wanted[TEXT][:pairs], "image_embeds": wanted[VISION][:pairs]})
    return wanted


def judge(
    path: Path,
    *,
    name: str,
    samples: Samples,
    wanted: Vectors,
    others: Vectors | None = None,
    backend: str = "onnx",
) -> Judgement:
    """How near a file is to the model.

    Args:
        name: of the tower.
        wanted: the model's vectors, by tower.
        others: vectors of the other tower's file, to compare answers with; None for the model's.
        backend: the engine that runs it.
    """
    inputs, embed = inputs_of(samples, name), by_file(path, name, backend)
    found = embed_all(embed, inputs, TOGETHER)
    alone = embed_all(embed, inputs[:ALONE], 1)
    answers = None
    if name == DUAL:
        answers = compare_answers(images_and_texts(wanted[DUAL]), images_and_texts(found))
    elif TEXT in wanted:
        both = wanted | (others or {}) | {name: found}
        answers = compare_answers((wanted[VISION], wanted[TEXT]), (both[VISION], both[TEXT]))
    return Judgement(compare(wanted[name], found, alone), answers, found)


def facts_of(folder: ModelFolder) -> dict[str, Any]:
    """Of `ExportSettings`: the loss head, as the checkpoint has it, and what token ids there are."""
    values = {name: folder.tensors.get(name) for name in ("logit_scale", "logit_bias")}
    found = {name: None if array is None else float(array.load().float()) for name, array in values.items()}
    text = getattr(folder.config, "text_config", None)
    padding = text.pad_token_id if text is not None and is_foreign(text) else None
    tokens = {"pad_token_id": padding, "vocabulary": getattr(text, "vocab_size", None)}
    return {**found, **tokens, "loss_type": getattr(folder.config, "loss_type", "sigmoid")}


def check_bars(report: ExportReport, options: ExportOptions) -> None:
    """
    Raises:
        VerificationError: a file is not as near as was asked for.
    """
    shares = {name: tower.answers for name, tower in report.towers.items()} | {"both towers": report.answers}
    for name, tower in report.towers.items():
        if options.min_cosine is not None and tower.parity.cosine_least < options.min_cosine:
            least = tower.parity.cosine_least
            raise VerificationError(f"{name}: least cosine {least:.6f}, asked for was {options.min_cosine}")
    for name, answers in shares.items():
        if options.min_agreement is not None and answers and answers.least < options.min_agreement:
            raise VerificationError(
                f"{name}: {answers.least:.1%} equal answers, asked for were {options.min_agreement:.1%}"
            )


def export_tower(
    folder: ModelFolder,
    name: str,
    draft: Path,
    options: ExportOptions,
    samples: Samples,
    wanted: Vectors,
    others: Vectors,
) -> tuple[TowerReport, torch.Tensor]:
    """Write, run and measure one tower; its report, and the vectors of the file.

    Args:
        wanted: the model's vectors, by tower.
        others: those of the files that are there already: together with them it must give the answers asked for.
    """
    about: dict[str, Any] = {"name": name, "samples": samples, "wanted": wanted, "backend": options.format}
    height, width = samples.images[0]["pixel_values"].shape[-2:]
    job = Job(
        load_part(folder, name),
        folder.config,
        name,
        (height, width),
        draft,
        options.opset,
        options.external_above,
        samples,
        partial(judge, others=others, **about),
        Bars(options.min_cosine, options.min_agreement),
    )
    file = FORMATS[options.format][options.precision](job)
    del job
    found = judge(file.path, **about)
    one = inputs_of(samples, name)[0]
    engine = by_file(file.path, name, options.format, threads=1)
    ratio = cpu_time_ratio(by_torch(load_part(folder, name), name), engine, one)
    memory = peak_memory(file.path, one, options.format)
    report = TowerReport(file.path.name, file.bytes, found.parity, found.answers, ratio, memory, file.in_float)
    return report, found.vectors


def export_model(source: str | Path, out: str | Path, options: ExportOptions | None = None) -> ExportReport:
    """Export a model folder to files for another runtime, run them, and compare what they give with the model.

    Args:
        source: a model folder, in stock form or ours.
        out: the folder to write; must not exist.

    Raises:
        FileNotFoundError: No such model folder.
        FileExistsError: `out` exists.
        ImportError: What writes such files is not installed.
        CheckpointError: The model cannot be exported, or an input cannot be read.
        VerificationError: A file is not as near to the model as was asked for.
    """
    options = options or ExportOptions()
    check_installed(options.format)
    folder = open_folder(source)
    check_towers(folder.config, options.towers)
    if set(options.towers) != {VISION}:
        check_tokenizer(folder.path)
    if options.layout == TRANSFORMERS_JS:
        check_layout(folder.config)
    samples = take_samples(folder.path, folder.config, options.images, options.texts)
    if options.min_agreement is not None and not samples.texts:
        raise CheckpointError("an image tower alone gives no answers to compare: ask for --min_cosine instead")
    towers: dict[str, TowerReport] = {}
    found: Vectors = {}
    with new_folder(out) as draft:
        wanted = reference_vectors(folder, samples)
        for name in options.towers:
            towers[name], found[name] = export_tower(folder, name, draft, options, samples, wanted, found)
        answers = None
        if {VISION, TEXT} <= set(found):
            answers = compare_answers((wanted[VISION], wanted[TEXT]), (found[VISION], found[TEXT]))
        report = ExportReport(
            folder.path.name, options.format, options.precision, options.opset, samples.source, towers, answers
        )
        check_bars(report, options)
        write_companions(folder.path, draft)
        files = {name: tower.file for name, tower in towers.items()}
        if options.layout == TRANSFORMERS_JS:
            files = arrange(draft, files, folder.config, options.precision)
            moved = {name: replace(tower, file=files[name]) for name, tower in towers.items()}
            report = replace(report, towers=moved)
        settings = ExportSettings(
            files, options.precision, **facts_of(folder), source=folder.path.name, runtime=RUNTIME[options.format]
        )
        write_settings(draft, settings)
        if options.evaluate is not None:
            report = replace(report, figures=before_and_after(folder.path, draft, options.evaluate, options.format))
        write_report(draft, report)
        write_export_card(draft, folder.path, settings, report, options.format)
    return report
