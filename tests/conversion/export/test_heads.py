"""Heads that stay in place: the same numbers as torch's, and nothing is transposed for attention."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modeling_siglip_ext.conversion.export.onnx_file import quiet


onnx_ir = pytest.importorskip("onnx_ir", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")


class Attention(nn.Module):
    """Two heads of 4. With `shown` the heads are an output, too, and cannot stay in place."""

    def __init__(self, shown: bool):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.shown = shown

    def forward(self, x, mask=None):
        query, key, value = (part(x).view(*x.shape[:2], 2, 4).transpose(1, 2) for part in self.maps)
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        found = heads.transpose(1, 2).reshape(x.shape)
        return (found, heads) if self.shown else (found,)


def export(module, inputs, opset):
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    shapes = {"x": sizes, "mask": {0: sizes[0], 2: sizes[1], 3: sizes[1]}}
    shapes = {name: shapes[name] for name in inputs}
    with quiet():
        program = torch.onnx.export(
            module, kwargs=inputs, dynamo=True, opset_version=opset, dynamic_shapes=shapes, verbose=False
        )
    return program.model


@pytest.mark.parametrize(
    ("masked", "shown", "opset", "left"),
    [(False, False, 23, 0), (True, False, 23, 0), (False, True, 23, 4), (False, False, 20, None)],
    ids=["plain", "masked", "heads needed", "no such node"],
)
@torch.no_grad()
def test_heads_stay_in_place(masked, shown, opset, left, tmp_path):
    from modeling_siglip_ext.conversion.export.heads import keep_heads_in_place

    torch.manual_seed(0)
    module = Attention(shown).eval()

    def inputs_of(batch, tokens):
        mask = torch.rand(batch, 1, tokens, tokens) < 0.7
        mask[..., 0] = True
        return {"x": torch.randn(batch, tokens, 8)} | ({"mask": mask} if masked else {})

    model = export(module, inputs_of(3, 5), opset)
    before = [node.op_type for node in model.graph]
    keep_heads_in_place(model)
    kinds = [node.op_type for node in model.graph]
    if left is None:
        assert kinds == before
        assert "Attention" not in kinds
    else:
        assert before.count("Transpose") >= 4
        assert kinds.count("Attention") == 1
        assert kinds.count("Transpose") == left
    onnx_ir.save(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch, tokens in ((3, 5), (1, 7), (4, 2)):
        inputs = inputs_of(batch, tokens)
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for one, wanted in zip(found, module(**inputs)):
            torch.testing.assert_close(torch.from_numpy(one), wanted, rtol=0, atol=1e-6)
