"""Files in 8 bits against the same products in plain numpy, and which layers are left in float."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel
from support.models import TINY_NAFLEX, TINY_TEXT, TINY_VISION


onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

from modeling_siglip_ext.conversion.export.calibration import activation_ranges  # noqa: E402 - once onnx is known to be there
from modeling_siglip_ext.conversion.export.int8 import choose, products, quantize_columns, quantize_file  # noqa: E402 - as above
from modeling_siglip_ext.conversion.export.onnx_file import quiet  # noqa: E402 - as above


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Linear(24, 24)
        nn.init.normal_(self.mlp.weight)

    def forward(self, x):
        return self.mlp(x)


class Small(nn.Module):
    """A table, three layers and a head; the first layer and the head are left in float."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(50, 24)
        self.layers = nn.ModuleList([Block(), Block(), Block()])
        self.head = nn.Linear(24, 7)

    def forward(self, ids):
        x = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)


def export(model: nn.Module, example: torch.Tensor, path: Path, **names) -> Path:
    free = ({0: torch.export.Dim("batch", min=1, max=64)},)
    with quiet():
        program = torch.onnx.export(
            Wrapper(model).eval(), (example,), dynamo=True, opset_version=23, dynamic_shapes=free, **names
        )
    program.save(path)
    return path


def run(path: Path, *inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {entry.name: x for entry, x in zip(session.get_inputs(), inputs)})[0]


def in_8_bits(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """An activation after it was written in 256 steps from `low` to `high`, 0 among them."""
    low, high = min(low, 0), max(high, 0)
    step = np.float32((high - low) / 255)
    zero = np.rint(-low / step)
    return (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step


def weights_in_8_bits(linear: nn.Linear) -> np.ndarray:
    weight = linear.weight.detach().numpy().astype(np.float64)
    steps = np.abs(weight).max(axis=1, keepdims=True) / 127
    return (np.rint(weight / steps) * steps).T


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    torch.manual_seed(0)
    model = Small()
    path = export(model, torch.zeros(2, 5, dtype=torch.long), tmp_path_factory.mktemp("small") / "small.onnx")
    return model, path


def in_numpy(model: Small, ids: np.ndarray, ranges: list[tuple[float, float]] | None) -> np.ndarray:
    x = model.layers[0](model.embeddings(torch.from_numpy(ids))).detach().numpy()
    for place, layer in enumerate(model.layers[1:]):
        ends = (x.min(), x.max()) if ranges is None else ranges[place]
        x = in_8_bits(x, *ends) @ weights_in_8_bits(layer.mlp) + layer.mlp.bias.detach().numpy()
    return x


def float_head(model: Small, x: np.ndarray) -> np.ndarray:
    return x @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()


@pytest.mark.filterwarnings("ignore")
def test_dynamic_is_the_product_of_rounded_numbers(small, tmp_path):
    model, path = small
    ids = np.random.default_rng(0).integers(0, 50, (3, 5))
    head = [product.layer for product in products(onnx.load(path)) if "head" in product.layer]
    layers = quantize_file(path, tmp_path / "int8.onnx", in_float=head)
    assert layers == ["layers.1.mlp", "layers.2.mlp"]
    expected = float_head(model, in_numpy(model, ids, None))
    assert np.abs(run(tmp_path / "int8.onnx", ids) - expected).max() < 2e-3 * np.abs(expected).max()
    assert np.abs(run(path, ids) - expected).max() > 4e-3 * np.abs(expected).max()  # or the comparison says nothing


@pytest.mark.filterwarnings("ignore")
def test_static_is_the_same_with_the_ranges_of_calibration_in_any_batch(small, tmp_path):
    model, path = small
    random = np.random.default_rng(1)
    seen, ids = random.integers(0, 50, (40, 5)), random.integers(0, 50, (6, 5))
    found = activation_ranges(path, [{"x": seen[:30]}, {"x": seen[30:]}])
    states = [model.embeddings(torch.from_numpy(seen))]
    for layer in model.layers:
        states.append(layer(states[-1]))
    expected = [(float(state.min()), float(state.max())) for state in states]
    assert np.allclose(list(found.values()), expected, rtol=1e-5)
    layers = quantize_file(path, tmp_path / "int8.onnx", ranges=found)
    assert layers == ["layers.1.mlp", "layers.2.mlp"]
    expected = float_head(model, in_numpy(model, ids, expected[1:]))
    vectors = run(tmp_path / "int8.onnx", ids)
    assert np.abs(vectors - expected).max() < 2e-3 * np.abs(expected).max()
    alone = np.concatenate([run(tmp_path / "int8.onnx", ids[row : row + 1]) for row in range(6)])
    assert np.abs(alone - vectors).max() < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_a_long_table_becomes_rows_of_int8(small, tmp_path):
    model, path = small
    ids = np.random.default_rng(2).integers(0, 50, (3, 5))
    everything = [product.layer for product in products(onnx.load(path))]
    assert quantize_file(path, tmp_path / "int8.onnx", in_float=everything, long_table=50) == ["embeddings"]
    table = model.embeddings.weight.detach().numpy()
    steps = np.abs(table).max(axis=1, keepdims=True) / 127
    rounded = Small()
    rounded.load_state_dict(
        model.state_dict() | {"embeddings.weight": torch.from_numpy(np.rint(table / steps) * steps)}
    )
    expected = rounded(torch.from_numpy(ids)).detach().numpy()
    assert np.abs(run(tmp_path / "int8.onnx", ids) - expected).max() < 1e-5 * np.abs(expected).max()
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    assert kinds["model.embeddings.weight.int8"] == onnx.TensorProto.INT8
    assert "model.embeddings.weight" not in kinds
    assert quantize_file(path, tmp_path / "float.onnx", in_float=[*everything, "embeddings"], long_table=50) == []
    assert quantize_file(path, tmp_path / "short.onnx", in_float=everything) == []


def test_columns():
    weight = np.array([[1.27, 0, -3], [-0.635, 0, 2.99]], dtype=np.float32)
    values, scales = quantize_columns(weight)
    assert values.dtype == np.int8
    assert values.tolist() == [[127, 0, -127], [-64, 0, 127]]
    assert scales.tolist() == pytest.approx([0.01, 1, 3 / 127])


class Vision(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *x):
        return F.normalize(self.model.get_image_features(*x).pooler_output, dim=-1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("vision", [TINY_VISION, TINY_NAFLEX], ids=["fixed", "naflex"])
def test_which_layers_of_a_tower_are_chosen(vision, tmp_path):
    model = SiglipExtModel(SiglipExtConfig(text_config=TINY_TEXT, vision_config=vision)).eval()
    inputs = (torch.randn(2, 3, 32, 32),)
    if model.config.vision_config.naflex:
        inputs = torch.randn(2, 16, 48), torch.ones(2, 16, dtype=torch.long), torch.tensor([[4, 4], [2, 3]])
    with quiet():
        torch.onnx.export(Vision(model), inputs, tmp_path / "tower.onnx", dynamo=True, opset_version=23)
    found = products(onnx.load(tmp_path / "tower.onnx"))
    layers = [f"vision_model.encoder.layers.{number}.{part}" for number in range(2) for part in ("self_attn", "mlp")]
    assert {product.layer for product in found} == {*layers, "vision_model.head"}
    assert len(found) == 2 * 6 + 4  # no attention products, no positions, no patches
    assert {product.layer for product in choose(found, static=False)} == {*layers[2:], "vision_model.head"}
    assert {product.layer for product in choose(found, static=True)} == {*layers[2:]}
    assert {product.layer for product in choose(found, static=True, in_float=layers[3:])} == {layers[2]}


def test_what_cannot_be_done(small, tmp_path):
    _, path = small
    with pytest.raises(ValueError, match="static int8 needs images and texts"):
        activation_ranges(path, [])
    with pytest.raises(ValueError, match="has no range: calibrate with this file"):
        quantize_file(path, tmp_path / "int8.onnx", ranges={})
    assert not (tmp_path / "int8.onnx").exists()
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, tmp_path / "nameless.onnx")
    with pytest.raises(ValueError, match=r"nameless.onnx has no products of named layers"):
        quantize_file(tmp_path / "nameless.onnx", tmp_path / "int8.onnx")
