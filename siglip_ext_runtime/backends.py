"""The engines that run an exported file: each is a function from arrays by name to arrays by name."""

import json
import os
import platform
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np


Arrays = dict[str, np.ndarray]
Run = Callable[[Mapping[str, np.ndarray]], Arrays]
# of ONNX Runtime, which has no common class for them
FAULTS = (
    *(
        "EPFail",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoModel",
        "NoSuchFile",
        "NotImplemented",
    ),
    "RuntimeException",
)
EXTRA = "{error}: this needs `pip install siglip-ext[{extra}]`"


def cast_to(inputs: Mapping[str, np.ndarray], types: Mapping[str, str], path: Path) -> Arrays:
    """The inputs that a file takes, in its types.

    Raises:
        ValueError: one is missing, or has fractions in place of whole numbers.
    """
    missing = [name for name in types if inputs.get(name) is None]
    if missing:
        raise ValueError(f"{path.name} needs {', '.join(missing)}")
    arrays = {name: np.ascontiguousarray(inputs[name], dtype=dtype) for name, dtype in types.items()}
    for name, dtype in types.items():
        if dtype.startswith("int") and not np.array_equal(arrays[name], inputs[name]):
            raise ValueError(f"{path.name} takes whole numbers for {name}")
    return arrays


def onnx_runtime(path: Path, *, threads: int | None = None) -> Run:
    """ONNX Runtime on the CPU.

    Args:
        threads: None for one a core.

    Raises:
        ImportError: it is not installed.
        ValueError: the file is no ONNX model that it can run.
    """
    others = {".xml": "OpenVINO", ".pt2": "AOTInductor"}
    if path.suffix in others:
        raise ValueError(f"{path} is a file of {others[path.suffix]}: run it with that backend")
    try:
        import onnxruntime

        state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    except ImportError as error:
        raise ImportError(EXTRA.format(error=error, extra="onnx")) from error
    faults = tuple(getattr(state, name) for name in FAULTS)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except faults as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    types = {one.name: NUMPY[one.type] for one in session.get_inputs()}
    names = [one.name for one in session.get_outputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> Arrays:
        try:
            return dict(zip(names, cast(list[np.ndarray], session.run(names, cast_to(inputs, types, path)))))
        except faults as error:
            raise ValueError(f"{path.name} does not take these inputs: {error}") from error

    return run


NUMPY = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64", "tensor(int32)": "int32"}
# OpenVINO takes the fastest precision that the machine has, bfloat16 on newer ones, unless told otherwise.
OPENVINO = {"INFERENCE_PRECISION_HINT": "f32"}


@cache
def openvino_core() -> Any:
    """One for the process, for good.

    Its CPU plugin gives the thread that first compiles something another stack for signals. Where the last model was
    let go of in another thread, as the garbage collector likes to, that stack would be unmapped and still be in use:
    the next signal ends the process, without a word from any handler (OpenVINO 2026.4).

    Raises:
        ImportError: it is not installed.
    """
    try:
        import openvino as ov
    except ImportError as error:
        raise ImportError(EXTRA.format(error=error, extra="openvino")) from error
    return ov.Core()


def openvino(path: Path, *, threads: int | None = None, **hints: str) -> Run:
    """OpenVINO on the CPU, in float32 unless a hint says otherwise; it reads ONNX files too.

    Raises:
        ImportError: it is not installed.
        ValueError: the file is no model that it can run.
    """
    number = {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
    try:
        compiled = openvino_core().compile_model(str(path), "CPU", {**OPENVINO, **number, **hints})
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    types = {one.any_name: one.element_type.to_dtype().name for one in compiled.inputs}
    names = [one.any_name for one in compiled.outputs]

    def run(inputs: Mapping[str, np.ndarray]) -> Arrays:
        try:
            found = compiled(cast_to(inputs, types, path))
        except RuntimeError as error:
            raise ValueError(f"{path.name} does not take these inputs: {error}") from error
        return {name: found[place].copy() for place, name in enumerate(names)}

    return run


ABOUT = "siglip_ext"  # what a package of AOTInductor says of itself, beside what torch does


def built_with() -> dict[str, str]:
    """What the machine code that is compiled here is bound to."""
    import torch

    cpu = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    return {"torch": torch.__version__.partition("+")[0], "cpu": cpu}


def aoti(path: Path, *, threads: int | None = None, **built: str) -> Run:
    """A package of torch's AOTInductor, which needs torch and no compiler. It is machine code: run those you trust.

    The loader is that of torch's C++ interface: `torch._inductor.aoti_load_package` compiles something to find out
    what the CPU can do, which takes seconds and a compiler.

    Args:
        threads: of no effect, as those are torch's own; `torch.set_num_threads`.
        built: what `built_with` gave where it was compiled; nothing to take that as given.

    Raises:
        ValueError: the file was compiled for something else, or is none that torch can run.
    """
    import torch

    here = built_with()
    if built not in ({}, here):
        raise ValueError(f"{path} was compiled for {built}, and here is {here}: export the model again here")
    os.environ.setdefault("AOTI_RUNTIME_CHECK_INPUTS", "1")  # or the code reads whatever memory the shapes lead it to
    try:
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
        about = json.loads(loader.get_metadata()[ABOUT])
    except (RuntimeError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} cannot be read: {reason}") from error

    def run(inputs: Mapping[str, np.ndarray]) -> Arrays:
        arrays = cast_to(inputs, about["types"], path)
        ids = arrays.get("input_ids", np.empty(0))
        if ids.min(initial=0) < 0 or ids.max(initial=-1) >= about["vocabulary"]:  # it would end the process
            raise ValueError(f"{path.name} does not take these inputs: tokens are 0 to {about['vocabulary'] - 1}")
        try:
            found = loader.boxed_run([torch.tensor(array) for array in arrays.values()])
        except RuntimeError as error:
            reason = str(error).split("\n")[0]
            raise ValueError(f"{path.name} does not take these inputs: {reason}") from error
        return {name: tensor.numpy() for name, tensor in zip(about["outputs"], found)}

    return run


BACKENDS: dict[str, Callable[..., Run]] = {"onnx": onnx_runtime, "openvino": openvino, "aoti": aoti}
