"""How a tower is written in each precision: a function a precision, from a job to the file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from ..resize import AnyConfig
from .onnx_file import TowerFile, write_onnx
from .parity import Judgement
from .samples import Samples
from .towers import build_tower, limits


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


def write_fp32(job: Job) -> TowerFile:
    tower = build_tower(job.model, job.config, job.name, job.size)
    return write_onnx(tower, job.folder, limits(job.config), opset=job.opset, external_above=job.external_above)


def write_fp16(job: Job) -> TowerFile:
    """Weights and activations in float16, inputs and outputs in float32.

    What a norm and a softmax add up stays float32: ONNX says so of its nodes, whatever their inputs are.
    """
    job.model.half()
    return write_fp32(job)


PRECISIONS: dict[str, Callable[[Job], TowerFile]] = {"fp32": write_fp32, "fp16": write_fp16}
