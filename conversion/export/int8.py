"""An ONNX file in 8 bits: products of activations with weights, one scale for each column of the weights.

ONNX Runtime's own tools quantise by kind of node, so that attention products, embeddings and the first layer come
along, where most is lost, and in five times the time. Here layers are named as in the model: the exporter notes for
every node the module that it came from. What stays in float and why is in `layers.choose`.

Dynamic: each activation gets its scale while running, one for the whole batch, so that a vector depends a little on
its neighbours. Static: the scale is that of calibration, and the vector the same in any batch.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .layers import LONG_TABLE, Product, choose, in_model, layer_of
from .onnx_file import EXTERNAL_ABOVE, EXTERNAL_SUFFIX, SCOPES


Ranges = Mapping[str, tuple[float, float]]


def scope_of(node: onnx.NodeProto) -> list[str]:
    """The module that a node came from, as the parts of its name in the model that a wrapper holds as `model`."""
    noted = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "[]")
    named = [scope for scope in map(in_model, ast.literal_eval(noted)[:-1]) if scope]
    return named[-1] if named else []


def products(model: onnx.ModelProto) -> list[Product]:
    """All products with constant weights (in, out) but those of the embeddings, in the order of the graph."""
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    found = []
    for node in model.graph.node:
        scope = scope_of(node)
        if node.op_type == "MatMul" and node.input[1] in matrices and scope and "embeddings" not in scope:
            found.append(Product(layer_of(scope), node.name, node.input[0], node.input[1]))
    return found


def quantize_columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (in, out) as int8 (in, out) and a float32 scale for each column (out,)."""
    scales = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    scales[scales == 0] = 1
    return np.clip(np.rint(weight / scales), -127, 127).astype(np.int8), scales


def quantize_file(
    source: str | Path,
    out: str | Path,
    *,
    ranges: Ranges | None = None,
    in_float: Iterable[str] = (),
    long_table: int = LONG_TABLE,
    external_above: int = EXTERNAL_ABOVE,
) -> list[str]:
    """Write an ONNX file in 8 bits.

    Args:
        source: a float32 file of torch's exporter (`dynamo=True`), with its notes of names.
        ranges: smallest and largest value of each activation, from `activation_ranges`: static; None: dynamic.
        in_float: layers that stay in float beside those that always do; names as returned.
        long_table: token tables of so many rows or more become rows of int8, each with its scale, beside the file.
        external_above: bytes of weights from which they lie beside the file.

    Returns:
        The layers in 8 bits.

    Raises:
        ValueError: the file has no products with names, or an activation has no range.
    """
    model = onnx.load(str(source))
    found = products(model)
    if not found:
        raise ValueError(f"{source} has no products of named layers; export it with torch.onnx.export(dynamo=True)")
    chosen = {product.node: product for product in choose(found, static=ranges is not None, in_float=in_float)}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    rewrite = Rewrite(tensors, ranges)
    kept = set(in_float)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.name in chosen:
            nodes.extend(rewrite.product(node, chosen[node.name]))
        elif node.op_type == "Gather" and is_long_table(node, tensors, long_table) and table_layer(node) not in kept:
            nodes.extend(rewrite.table(node))
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    needed = {name for node in nodes for name in node.input}
    left = [tensor for tensor in (*model.graph.initializer, *rewrite.added) if tensor.name in needed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(left)
    out = Path(out)
    beside = out.name + EXTERNAL_SUFFIX
    out.with_name(beside).unlink(missing_ok=True)  # it would be written to its end
    # what is inside of a file is in memory twice while it is loaded: of long tables 570 MB instead of 275
    if rewrite.tables or sum(map(bytes_of, left)) > external_above:
        onnx.save(model, str(out), save_as_external_data=True, location=beside)
    else:
        onnx.save(model, str(out))
    return sorted({product.layer for product in chosen.values()} | rewrite.tables)


def bytes_of(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims)) * np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize


def table_layer(node: onnx.NodeProto) -> str:
    """The name of a table, to be given back to float by."""
    return ".".join(scope_of(node))


def is_long_table(node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto], rows: int) -> bool:
    table = tensors.get(node.input[0])
    along_rows = next((entry.i for entry in node.attribute if entry.name == "axis"), 0) == 0
    return table is not None and along_rows and len(table.dims) == 2 and table.dims[0] >= rows


class Rewrite:
    """The nodes that take the place of others, and the constants that they need."""

    def __init__(self, tensors: Mapping[str, onnx.TensorProto], ranges: Ranges | None):
        self.tensors, self.ranges = tensors, ranges
        self.added: list[onnx.TensorProto] = []
        self.tables: set[str] = set()
        self.done: set[str] = set()  # activations that are in 8 bits already; query, key and value share theirs

    def constant(self, name: str, value: Any) -> str:
        self.added.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, name: str) -> tuple[str, str]:
        """The names of the int8 weights and of their scales."""
        if name not in self.done:
            self.done.add(name)
            values, scales = quantize_columns(numpy_helper.to_array(self.tensors[name]))
            self.constant(f"{name}.int8", values), self.constant(f"{name}.scales", scales)
        return f"{name}.int8", f"{name}.scales"

    def product(self, node: onnx.NodeProto, product: Product) -> Iterator[onnx.NodeProto]:
        weight, scales = self.weight(product.weight)
        x, y = product.activation, node.output[0]
        made = self.dynamic if self.ranges is None else self.static
        return in_place_of(node, made(x, weight, scales, y))

    def dynamic(self, x: str, weight: str, scales: str, y: str) -> Iterator[onnx.NodeProto]:
        """ONNX Runtime makes one kernel of these."""
        whole, scale, zero = f"{x}.int8", f"{x}.scale", f"{x}.zero"
        if x not in self.done:
            self.done.add(x)
            yield helper.make_node("DynamicQuantizeLinear", [x], [whole, scale, zero])
        yield helper.make_node("MatMulInteger", [whole, weight, zero], [f"{y}.int32"])
        yield helper.make_node("Cast", [f"{y}.int32"], [f"{y}.float"], to=onnx.TensorProto.FLOAT)
        yield helper.make_node("Mul", [scale, scales], [f"{y}.scales"])
        yield helper.make_node("Mul", [f"{y}.float", f"{y}.scales"], [y])

    def static(self, x: str, weight: str, scales: str, y: str) -> Iterator[onnx.NodeProto]:
        """In the form that runtimes look for: a product between nodes that take both sides back to float."""
        if x not in self.done:
            self.done.add(x)
            scale, zero = self.activation(x)
            yield helper.make_node("QuantizeLinear", [x, scale, zero], [f"{x}.int8"])
            yield helper.make_node("DequantizeLinear", [f"{x}.int8", scale, zero], [f"{x}.float"])
        if weight not in self.done:
            self.done.add(weight)
            yield helper.make_node("DequantizeLinear", [weight, scales], [f"{weight}.float"], axis=1)
        yield helper.make_node("MatMul", [f"{x}.float", f"{weight}.float"], [y])

    def activation(self, x: str) -> tuple[str, str]:
        assert self.ranges is not None
        if x not in self.ranges:
            raise ValueError(f"the activation {x!r} has no range: calibrate with this file")
        scale, zero = affine(*self.ranges[x])
        return self.constant(f"{x}.scale", scale), self.constant(f"{x}.zero", zero)

    def table(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Rows of int8 and their scales, looked up and multiplied."""
        name, y = node.input[0], node.output[0]
        if name not in self.done:
            self.done.add(name)
            values, scales = quantize_columns(numpy_helper.to_array(self.tensors[name]).T)
            self.constant(f"{name}.int8", np.ascontiguousarray(values.T))
            self.constant(f"{name}.scales", scales[:, None])
        self.tables.add(table_layer(node))
        made = [
            helper.make_node("Gather", [f"{name}.int8", node.input[1]], [f"{y}.int8"]),
            helper.make_node("Gather", [f"{name}.scales", node.input[1]], [f"{y}.scales"]),
            helper.make_node("Cast", [f"{y}.int8"], [f"{y}.float"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [f"{y}.float", f"{y}.scales"], [y]),
        ]
        return in_place_of(node, made)


def in_place_of(node: onnx.NodeProto, made: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes with names, and the notes of the one that they replace."""
    for new in made:
        new.name = f"{new.output[0]}.node"
        new.metadata_props.extend(node.metadata_props)
        yield new


def affine(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of 8 bits without sign for a range, in which 0 is exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255) or np.float32(1)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))
