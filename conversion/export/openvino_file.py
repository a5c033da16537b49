"""One tower to OpenVINO's files, a graph (.xml) and its weights (.bin), and their weights in 8 bits.

The exported program goes to OpenVINO directly: by way of ONNX it computes the resizing of NaFlex positions otherwise.
Files do not keep in which precision to run: on machines that multiply bfloat16 OpenVINO does so unless it is told not
to, and `export.json` says it.

NNCF's 8 bits are the weights'. The runtime writes the activations in 8 bits by itself, in groups of 32 channels of one
token, so that a vector does not depend on the rest of its batch.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from siglip_ext_runtime.backends import openvino_core

from .layers import LONG_TABLE, Product, choose, in_model, layer_of
from .onnx_file import TowerFile, program_of, quiet
from .towers import Tower


WITH_WEIGHTS = ("MatMul", "Gather", "Convolution")


def write_openvino(tower: Tower, folder: Path, limits: dict[str, int], *, half: bool = False) -> TowerFile:
    """Write `<tower>.xml` and `<tower>.bin`.

    Args:
        limits: the most that each free dimension may be.
        half: weights in float16; they are computed with as the runtime is told.

    Raises:
        CheckpointError: torch cannot trace the tower.
    """
    import openvino as ov

    with quiet(), torch.no_grad():
        program = program_of(tower, limits, "OpenVINO")
        modules = modules_of(program)
        model = ov.convert_model(program)
    model.reshape({name: shape_of(tower, name) for name in tower.inputs})
    for output, name in zip(model.outputs, tower.outputs):
        output.get_tensor().set_names({name})
    for node in model.get_ordered_ops():
        scope = modules.get(node.get_friendly_name().split("/")[0])
        if scope and node.get_type_name() in WITH_WEIGHTS:
            node.set_friendly_name(f"{'.'.join(scope)}:{node.get_friendly_name()}")
    path = folder / f"{tower.name}.xml"
    ov.save_model(model, path, compress_to_fp16=half)
    return TowerFile(tower.name, path)


def shape_of(tower: Tower, name: str) -> list[int]:
    """Of an input, -1 for its free dimensions."""
    free = tower.free.get(name, {})
    return [-1 if place in free else size for place, size in enumerate(tower.inputs[name].shape)]


def modules_of(program: torch.export.ExportedProgram) -> dict[str, list[str]]:
    """The module behind each node, as the parts of its name in the model."""
    stacks = {node.name: list(node.meta.get("nn_module_stack", {}).values()) for node in program.graph.nodes}
    return {name: in_model(stack[-1][0]) for name, stack in stacks.items() if stack}


def product_of(node: Any, long_table: int) -> Product | None:
    """A node as something to be written in 8 bits; None where it is of the embeddings, but for long tables."""
    name = node.get_friendly_name()
    scope, named, _ = name.partition(":")
    if not named:
        return None
    if node.get_type_name() == "MatMul" and "embeddings" not in scope.split("."):
        return Product(layer_of(scope.split(".")), name)
    table = node.get_type_name() == "Gather" and node.input_value(0).get_partial_shape()
    return Product(scope, name) if table and table[0].get_min_length() >= long_table else None


def quantize_openvino(
    source: Path, out: Path, *, in_float: Iterable[str] = (), long_table: int = LONG_TABLE
) -> list[str]:
    """Write a file with weights in 8 bits, one scale for each row.

    Args:
        source: a file of `write_openvino`.
        in_float: layers that stay in float, beside the first ones and embeddings.
        long_table: token tables of so many rows or more are written in 8 bits, too.

    Returns:
        The layers in 8 bits.
    """
    import nncf
    import openvino as ov

    model = openvino_core().read_model(source)
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() in WITH_WEIGHTS]
    chosen = choose([product for node in nodes if (product := product_of(node, long_table))], in_float=in_float)
    taken = {product.node for product in chosen}
    others = [node.get_friendly_name() for node in nodes if node.get_friendly_name() not in taken]
    with quiet():
        smaller = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT8_SYM,
            ignored_scope=nncf.IgnoredScope(names=others, validate=False),
        )
    ov.save_model(smaller, out, compress_to_fp16=True)
    return sorted({product.layer for product in chosen})
