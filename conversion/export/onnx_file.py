"""One tower to one ONNX file, through torch.export; large weights beside it under the name that clients look for."""

import contextlib
import io
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.exc import UserError
from torch.export import Dim

from ..errors import CheckpointError
from .towers import Tower


# From 20 on GELU is one node, from 23 on attention, which runtimes compute faster and quantisers leave alone.
OPSET, LEAST_OPSET = 23, 20
# Protocol buffers end at 2 GB; larger files keep their weights beside them.
EXTERNAL_ABOVE = 1_900_000_000
EXTERNAL_SUFFIX = "_data"
SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class TowerFile:
    """A file that was written.

    Args:
        name: of the tower.
        path: of the ONNX file.
        in_float: of a file in 8 bits, layers that were given back to float.
    """

    name: str
    path: Path
    in_float: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """With the weights beside it."""
        beside = self.path.name + EXTERNAL_SUFFIX, f"{self.path.stem}.bin"
        paths = (self.path, *map(self.path.with_name, beside))
        return sum(path.stat().st_size for path in paths if path.is_file())


def check_opset(opset: int) -> None:
    """
    Raises:
        ValueError: it is too old.
    """
    if opset < LEAST_OPSET:
        raise ValueError(f"opset={opset}: at least {LEAST_OPSET}, which has GELU as one node")


WRITERS = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "openvino": ("openvino", "nncf"), "aoti": ()}


def check_installed(form: str) -> None:
    """
    Args:
        form: "onnx", "openvino" or "aoti".

    Raises:
        ImportError: what writes such files is not installed.
    """
    missing = [name for name in WRITERS[form] if find_spec(name) is None]
    if missing:
        raise ImportError(f"exporting to {form} needs {', '.join(missing)}: `pip install siglip-ext[{form}]`")
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if form == "aoti" and shutil.which(compiler) is None:
        raise ImportError(
            f"exporting to aoti needs a C++ compiler, and there is no {compiler}: install it, or set CXX"
        )


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """The exporter prints its steps, and warns of things inside torch and onnxscript that nobody here can mend."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "nncf", "torch._inductor")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


def strip(model: Any) -> None:
    """Leave of the exporter's notes the names of modules alone: the rest repeats the graph, and names files here."""
    model.metadata_props.clear()
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs, *getattr(graph, "initializers", {}).values()):
            value.metadata_props.clear()
        for node in graph.all_nodes():
            scopes = node.metadata_props.get(SCOPES)
            node.metadata_props.clear()
            if scopes is not None:
                node.metadata_props[SCOPES] = scopes
            for value in node.outputs:
                value.metadata_props.clear()


def dimensions_of(tower: Tower, limits: dict[str, int]) -> dict[str, dict[int, Any] | None]:
    """The free dimensions of each input, as torch.export takes them.

    Args:
        limits: the most that each may be.
    """
    sizes = {axis: Dim(axis, min=1, max=limits[axis]) for axes in tower.free.values() for axis in axes.values()}
    return {
        name: {place: sizes[axis] for place, axis in tower.free[name].items()} if name in tower.free else None
        for name in tower.inputs
    }


def program_of(tower: Tower, limits: dict[str, int], form: str) -> torch.export.ExportedProgram:
    """A traced tower.

    Args:
        limits: the most that each free dimension may be.
        form: what it is traced for, as people call it.

    Raises:
        CheckpointError: torch cannot trace the tower.
    """
    try:
        return torch.export.export(
            tower.module, (), kwargs=tower.inputs, dynamic_shapes=dimensions_of(tower, limits), strict=False
        )
    except (UserError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"torch cannot export this {tower.name} to {form}: {reason}") from error


def write_onnx(
    tower: Tower, folder: Path, limits: dict[str, int], *, opset: int = OPSET, external_above: int = EXTERNAL_ABOVE
) -> TowerFile:
    """Write `<tower>.onnx`, and `<tower>.onnx_data` where the weights are too large for one file.

    Nodes keep the names of their modules, outermost first, in the metadata `pkg.torch.onnx.name_scopes`.

    Args:
        limits: the most that each free dimension may be.
        opset: at least 20.
        external_above: bytes of weights from which they lie beside the file.

    Raises:
        CheckpointError: torch cannot trace the tower.
    """
    import onnx_ir

    from .heads import keep_heads_in_place

    with quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                tower.module,
                kwargs=tower.inputs,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dimensions_of(tower, limits),
                output_names=tower.outputs,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().split("\n")[0]
            raise CheckpointError(f"torch cannot export this {tower.name} to ONNX: {reason}") from error
    assert program is not None
    strip(program.model)
    keep_heads_in_place(program.model)
    path = folder / f"{tower.name}.onnx"
    weights = sum(one.const_value.nbytes for one in program.model.graph.initializers.values() if one.const_value)
    external = f"{path.name}{EXTERNAL_SUFFIX}" if weights > external_above else None
    onnx_ir.save(program.model, path, external_data=external)
    return TowerFile(tower.name, path)
