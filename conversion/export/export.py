"""A model folder to files for other runtimes: written, run, compared with the model, and only then there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel, SiglipExtTextModel, SiglipExtVisionModel
from modeling_siglip_ext.configuration_siglip_ext import is_foreign
from modeling_siglip_ext.files import new_folder
from siglip_ext_runtime.settings import ExportSettings

from ..errors import VerificationError
from ..model_folder.folder import ModelFolder, open_folder
from .companions import image_size, write_companions
from .onnx_file import EXTERNAL_ABOVE, OPSET, check_installed, check_opset
from .parity import Judgement, compare, compare_answers
from .precisions import PRECISIONS, Job
from .report import ExportReport, TowerReport, write_report
from .samples import Samples, take_samples
from .search import Bars
from .towers import DUAL, OUTPUTS, TEXT, VISION, check_towers
from .vectors import ALONE, BATCH, TOGETHER, by_file, by_torch, embed_all, inputs_of


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how near it must be.

    Args:
        towers: names of the files: "vision_model", "text_model", or "model" for both in one with their logits.
        precision: a key of `PRECISIONS`.
        opset: of the ONNX files, at least 20.
        external_above: bytes of weights from which they lie beside a file.
        min_cosine: the least that a cosine between a vector and its float32 one may be.
        min_agreement: the least share of equal nearest neighbours.
        images, texts: of the user's own, to calibrate and judge on; None for some that are drawn.

    Raises:
        ValueError: an unknown tower or precision, or a bar that is none.
    """

    towers: tuple[str, ...] = (VISION, TEXT)
    precision: str = "fp32"
    opset: int = OPSET
    external_above: int = EXTERNAL_ABOVE
    min_cosine: float | None = None
    min_agreement: float | None = None
    images: Sequence[Any] | None = None
    texts: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for names, known in ((self.towers, OUTPUTS), ((self.precision,), PRECISIONS)):
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
        check_opset(self.opset)


def load_part(folder: ModelFolder, name: str) -> PreTrainedModel:
    """The model in float32, or of SigLIP's own towers the one that is needed, so that memory holds no more."""
    config, kind = folder.config, SiglipExtModel
    if not isinstance(config, SiglipExtConfig) or (name == VISION and not is_foreign(config.vision_config)):
        kind = SiglipExtVisionModel
    elif name == TEXT and not is_foreign(config.text_config):
        kind = SiglipExtTextModel
    return kind.from_pretrained(folder.path, dtype=torch.float32).eval()


def judge(
    path: Path, *, name: str, samples: Samples, wanted: dict[str, torch.Tensor], backend: str = "onnx"
) -> tuple[Judgement, torch.Tensor]:
    """How near a file is to the model, and its vectors (N, D).

    Args:
        wanted: the model's vectors, by tower.
    """
    inputs, embed = inputs_of(samples, name), by_file(path, name, backend)
    found = embed_all(embed, inputs, TOGETHER)
    alone = embed_all(embed, inputs[:ALONE], 1)
    answers = None
    if {VISION, TEXT} <= set(wanted) and name != DUAL:
        both = wanted | {name: found}
        answers = compare_answers((wanted[VISION], wanted[TEXT]), (both[VISION], both[TEXT]))
    return Judgement(compare(wanted[name], found, alone), answers), found


def reference_vectors(folder: ModelFolder, samples: Samples, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """The model's own vectors in float32, by tower; of one tower after the other, for the sake of memory."""
    wanted = {}
    for name in names:
        embed = by_torch(load_part(folder, name), name)
        wanted[name] = embed_all(embed, inputs_of(samples, name), BATCH)
    return wanted


def loss_head(folder: ModelFolder) -> dict[str, Any]:
    """Of `ExportSettings`: scale, bias and loss, as the checkpoint has them."""
    values = {name: folder.tensors.get(name) for name in ("logit_scale", "logit_bias")}
    found = {name: None if array is None else float(array.load().float()) for name, array in values.items()}
    return {**found, "loss_type": getattr(folder.config, "loss_type", "sigmoid")}


def check_bars(report: ExportReport, options: ExportOptions) -> None:
    """
    Raises:
        VerificationError: a file is not as near as was asked for.
    """
    for name, tower in report.towers.items():
        cosine, answers = tower.parity.cosine_least, tower.answers
        if options.min_cosine is not None and cosine < options.min_cosine:
            raise VerificationError(f"{name}: least cosine {cosine:.6f}, asked for was {options.min_cosine}")
        if options.min_agreement is not None and answers and answers.least < options.min_agreement:
            raise VerificationError(
                f"{name}: {answers.least:.1%} equal answers, asked for were {options.min_agreement:.1%}"
            )


def export_model(source: str | Path, out: str | Path, options: ExportOptions | None = None) -> ExportReport:
    """Export a model folder to ONNX files, run them, and compare what they give with the model.

    Args:
        source: a model folder, in stock form or ours.
        out: the folder to write; must not exist.

    Raises:
        FileNotFoundError: No such model folder.
        FileExistsError: `out` exists.
        ImportError: What writes ONNX files is not installed.
        CheckpointError: The model cannot be exported, or an input cannot be read.
        VerificationError: A file is not as near to the model as was asked for.
    """
    options = options or ExportOptions()
    check_installed()
    folder = open_folder(source)
    check_towers(folder.config, options.towers)
    size = image_size(folder.path, folder.config)
    samples = take_samples(folder.path, folder.config, options.images, options.texts)
    towers: dict[str, TowerReport] = {}
    files: dict[str, str] = {}
    with new_folder(out) as draft:
        wanted = reference_vectors(folder, samples, options.towers)
        for name in options.towers:
            about: dict[str, Any] = {"name": name, "samples": samples, "wanted": wanted}
            job = Job(
                load_part(folder, name),
                folder.config,
                name,
                size,
                draft,
                options.opset,
                options.external_above,
                samples,
                lambda path, about=about: judge(path, **about)[0],
                Bars(options.min_cosine, options.min_agreement),
            )
            file = PRECISIONS[options.precision](job)
            del job
            judgement, _ = judge(file.path, **about)
            files[name] = file.path.name
            towers[name] = TowerReport(file.path.name, file.bytes, judgement.parity, judgement.answers, file.in_float)
        report = ExportReport(str(source), options.precision, options.opset, samples.source, towers)
        check_bars(report, options)
        write_companions(folder.path, draft)
        settings = ExportSettings(files, options.precision, **loss_head(folder), source=str(source))
        write_report(draft, settings, report)
    return report
