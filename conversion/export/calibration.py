"""The range of every activation that is to be written in 8 bits, over one's own images and texts."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import helper

from .int8 import Ranges, products


def activation_ranges(source: str | Path, batches: Iterable[Mapping[str, np.ndarray]]) -> Ranges:
    """Smallest and largest value of what each product of an ONNX file reads, over all batches.

    Args:
        batches: inputs by their names; some hundred images or texts in all.

    Raises:
        ValueError: no batch.
    """
    import onnxruntime

    model = onnx.load(str(source))
    names = list(dict.fromkeys(product.activation for product in products(model)))
    ends = [f"{name}.{end}" for name in names for end in ("min", "max")]
    for name in names:
        for end, kind in (("min", "ReduceMin"), ("max", "ReduceMax")):
            model.graph.node.append(helper.make_node(kind, [name], [f"{name}.{end}"], keepdims=0))
    model.graph.output.extend(helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, []) for end in ends)
    rows = []
    with TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        onnx.save(model, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for batch in batches:
            rows.append(np.array(session.run(ends, dict(batch))).reshape(len(names), 2))
    if not rows:
        raise ValueError("static int8 needs images and texts to calibrate with, and there were none")
    found = np.stack(rows)
    lows, highs = found[..., 0].min(axis=0), found[..., 1].max(axis=0)
    return {name: (float(low), float(high)) for name, low, high in zip(names, lows, highs)}
