"""How a tower is written in each precision: a function a precision, from a job to the file."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedModel

from modeling_siglip_ext.image_budget import collate

from ..resize import AnyConfig
from .aoti_file import write_aoti
from .onnx_file import TowerFile, write_onnx
from .openvino_file import quantize_openvino, write_openvino
from .parity import Judgement
from .samples import Inputs, Samples
from .search import Bars, give_back
from .smoothquant import smooth
from .towers import build_tower, limits
from .vectors import BATCH, inputs_of


Quantize = Callable[[Path, frozenset[str]], list[str]]


@dataclass(frozen=True)
class Job:
    """A tower to be written.

    Args:
        model: the whole one, or that tower alone, in float32; it may be changed.
        config: of the whole model, or of an image tower alone.
        name: of the tower.
        size: height and width in pixels of an image, where they are fixed.
        folder: to write into.
        opset: of the ONNX file.
        external_above: bytes of weights from which they lie beside the file.
        samples: to calibrate on.
        judge: how near a file is to the model.
        bars: what must be kept.
    """

    model: PreTrainedModel
    config: AnyConfig
    name: str
    size: tuple[int, int]
    folder: Path
    opset: int
    external_above: int
    samples: Samples
    judge: Callable[[Path], Judgement]
    bars: Bars


def write_fp32(job: Job) -> TowerFile:
    tower = build_tower(job.model, job.config, job.name, job.size)
    return write_onnx(tower, job.folder, limits(job.config), opset=job.opset, external_above=job.external_above)


def write_fp16(job: Job) -> TowerFile:
    """Weights and activations in float16, inputs and outputs in float32.

    What a norm and a softmax add up stays float32: ONNX says so of its nodes, whatever their inputs are.
    """
    job.model.half()
    return write_fp32(job)


def in_8_bits(job: Job, exact: TowerFile, quantize: Quantize) -> TowerFile:
    """Write a file in 8 bits beside the others. Layers are given back to float until the bars are met.

    Args:
        exact: the float file to quantise, in a folder for drafts.
        quantize: writes a file with some layers in float, and gives the names of the layers in 8 bits.
    """
    trial = exact.path.with_stem("trial")

    def measure(in_float: frozenset[str]) -> Judgement:
        quantize(trial, in_float)
        return job.judge(trial)

    in_float = give_back(quantize(trial, frozenset()), measure, job.bars)
    out = job.folder / exact.path.name
    quantize(out, in_float)
    return TowerFile(job.name, out, tuple(sorted(in_float)))


def write_int8(job: Job, *, static: bool = False) -> TowerFile:
    from .calibration import activation_ranges
    from .int8 import quantize_file

    batches = calibration(job)
    tower = build_tower(job.model, job.config, job.name, job.size)
    smooth(tower.module, batches)
    external = {"external_above": job.external_above}
    with TemporaryDirectory(dir=job.folder) as folder:
        exact = write_onnx(tower, Path(folder), limits(job.config), opset=job.opset, **external)
        arrays = ({name: tensor.numpy() for name, tensor in inputs.items()} for inputs in batches)
        ranges = activation_ranges(exact.path, arrays) if static else None

        def quantize(out: Path, in_float: frozenset[str]) -> list[str]:
            return quantize_file(exact.path, out, ranges=ranges, in_float=in_float, **external)

        return in_8_bits(job, exact, quantize)


def write_openvino_float(job: Job, *, half: bool = False) -> TowerFile:
    tower = build_tower(job.model, job.config, job.name, job.size)
    return write_openvino(tower, job.folder, limits(job.config), half=half)


def write_openvino_int8(job: Job) -> TowerFile:
    tower = build_tower(job.model, job.config, job.name, job.size)
    smooth(tower.module, calibration(job))
    with TemporaryDirectory(dir=job.folder) as folder:
        exact = write_openvino(tower, Path(folder), limits(job.config))

        def quantize(out: Path, in_float: frozenset[str]) -> list[str]:
            return quantize_openvino(exact.path, out, in_float=in_float)

        return in_8_bits(job, exact, quantize)


def write_aoti_float(job: Job, *, dtype: torch.dtype = torch.float32) -> TowerFile:
    tower = build_tower(job.model.to(dtype), job.config, job.name, job.size)
    return write_aoti(tower, job.folder, limits(job.config))


def calibration(job: Job) -> list[Inputs]:
    """Every second input, in batches. What is judged are all of them, so that the least of all is also of new ones."""
    inputs = inputs_of(job.samples, job.name)[::2]
    return [collate(inputs[start : start + BATCH]) for start in range(0, len(inputs), BATCH)]


FORMATS: dict[str, dict[str, Callable[[Job], TowerFile]]] = {
    "onnx": {
        "fp32": write_fp32,
        "fp16": write_fp16,
        "int8": write_int8,
        "int8-static": partial(write_int8, static=True),
    },
    # whose int8 is the same in any batch by itself
    "openvino": {
        "fp32": write_openvino_float,
        "fp16": partial(write_openvino_float, half=True),
        "int8": write_openvino_int8,
    },
    "aoti": {"fp32": write_aoti_float, "bf16": partial(write_aoti_float, dtype=torch.bfloat16)},
}
