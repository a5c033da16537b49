"""Attention whose heads stay side by side in the channels, which a runtime need not copy.

torch exports what the code of a model says: heads are split off, brought before the tokens, and brought back. ONNX's
attention (opset 23) takes (B, N, heads · width) as well and gives the same numbers.
"""

import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


HEADS_FIRST = (0, 2, 1, 3)


def keep_heads_in_place(model: onnx_ir.Model) -> None:
    """Change the attention nodes that have heads of their own; those of the MAP head, with one query, stay."""
    for node in [one for one in model.graph if one.op_type == "Attention"]:
        split = [found for found in map(_before, node.inputs[:3]) if found is not None]
        joined = _after(node.outputs[0])
        if joined is None or len(split) < 3:
            continue
        for place, (value, _) in enumerate(split):
            node.replace_input_with(place, value)
        for name, (_, heads) in zip(("q_num_heads", "kv_num_heads"), split):
            node.attributes[name] = onnx_ir.AttrInt64(name, heads)
        joined.replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)
        node.outputs[0].shape = joined.shape
    RemoveUnusedNodesPass()(model)


def _before(value: onnx_ir.Value | None) -> tuple[onnx_ir.Value, int] | None:
    """(B, N, heads · width) of which (B, heads, N, width) was made, and the heads; None if it was made otherwise."""
    moved = None if value is None else _moved(value.producer())
    maker = None if moved is None else moved.producer()
    if value is None or value.shape is None or maker is None or maker.op_type != "Reshape":
        return None
    source, heads = maker.inputs[0], value.shape[1]
    whole = source is not None and source.shape is not None and len(source.shape) == 3
    return (source, heads) if whole and isinstance(heads, int) else None


def _after(value: onnx_ir.Value) -> onnx_ir.Value | None:
    """(B, N, heads · width) that is made of (B, heads, N, width), and nothing else is."""
    user = _only_user(value)
    maker = _only_user(user.outputs[0]) if user is not None and _moved(user) else None
    found = maker.outputs[0] if maker is not None and maker.op_type == "Reshape" else None
    return found if found is not None and found.shape and len(found.shape) == 3 else None


def _only_user(value: onnx_ir.Value) -> onnx_ir.Node | None:
    users = value.consumers()
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def _moved(node: onnx_ir.Node | None) -> onnx_ir.Value | None:
    """What a transposition of heads and tokens was given."""
    if node is None or node.op_type != "Transpose" or tuple(node.attributes["perm"].as_ints()) != HEADS_FIRST:
        return None
    return node.inputs[0]
