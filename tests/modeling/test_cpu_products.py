"""Linear layers by oneDNN, whatever the CPU that this runs on: the numbers, and what is left as it is."""

import contextlib

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_siglip_ext import SiglipExtModel, encode_images, encode_texts, encoding
from modeling_siglip_ext.cpu_products import OneDNNLinear, fast_products, onednn_is_faster
from support.images import noise
from support.models import make_config, make_processor


pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


class Operators(TorchDispatchMode):
    """Names of the operators that torch computed."""

    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def computed(inputs, weight, bias=None):
    """The product under the mode, and whether oneDNN made it."""
    with OneDNNLinear(), Operators() as operators:
        found = F.linear(inputs, weight, bias)
    return found, "_linear_pointwise" in operators.seen


SHAPES = [(3, 5), (2, 7, 5), (2, 3, 4, 5), (1, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_right(shape, biased):
    torch.manual_seed(0)
    inputs, weight, bias = torch.randn(shape), torch.nn.Parameter(torch.randn(11, 5)), torch.randn(11)
    whole = torch.randn(*shape[:-1], 10)
    given = [(inputs, weight), (whole[..., ::2], weight), (inputs, torch.randn(5, 11).T), (inputs[:, :], weight[1:9])]
    with torch.no_grad():
        for rows, matrix in given:
            own = bias[: len(matrix)] if biased else None
            found, by_onednn = computed(rows, matrix, own)
            assert by_onednn
            expected = F.linear(rows.double(), matrix.double(), None if own is None else own.double())
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_everything_else_is_left_as_it_is():
    inputs, weight = torch.randn(3, 5), torch.nn.Parameter(torch.randn(4, 5))
    found, by_onednn = computed(inputs, weight)  # with gradients
    assert not by_onednn
    found.sum().backward()
    torch.testing.assert_close(weight.grad, inputs.sum(0).expand(4, 5))
    with torch.no_grad():
        for rows, matrix in (
            (inputs.double(), weight.double()),
            (inputs.bfloat16(), weight.bfloat16()),
            (inputs[0], weight),
            (inputs[:0], weight),
            (inputs.to("meta"), weight.to("meta")),
            (inputs.as_subclass(type("Own", (torch.Tensor,), {})), weight),
        ):
            found, by_onednn = computed(rows, matrix)
            assert not by_onednn
            assert found.shape == (*rows.shape[:-1], 4)
        with torch.autocast("cpu", torch.bfloat16):
            assert computed(inputs, weight)[0].dtype == torch.bfloat16
        with pytest.raises(RuntimeError):
            computed(inputs, torch.randn(4, 6))


@pytest.fixture
def parts():
    torch.manual_seed(0)
    processor = make_processor(["a cat", "a dog"])
    model = SiglipExtModel(make_config({"vocab_size": len(processor.tokenizer), "max_position_embeddings": 64}))
    return model.eval(), processor


def encoded(parts, context, monkeypatch):
    monkeypatch.setattr(encoding, "fast_products", context)
    return encode_images(*parts, [noise(40, 30, seed) for seed in range(3)]), encode_texts(*parts, ["a cat", "a dog"])


def test_vectors_are_the_same(parts, monkeypatch):
    ours = encoded(parts, OneDNNLinear, monkeypatch)
    theirs = encoded(parts, contextlib.nullcontext, monkeypatch)
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(torch.as_tensor(mine), torch.as_tensor(other), rtol=0, atol=1e-6)


def test_encoding_takes_what_is_faster_here(parts):
    with Operators() as operators:
        encode_texts(*parts, ["a cat"])
    assert ("_linear_pointwise" in operators.seen) == onednn_is_faster()
    assert isinstance(fast_products(), OneDNNLinear) == onednn_is_faster()


def test_a_compiled_model_is_encoded_with(parts, monkeypatch):
    model, processor = parts
    expected = encoded(parts, contextlib.nullcontext, monkeypatch)
    model.vision_model.compile(backend="aot_eager")
    found = encoded((model, processor), OneDNNLinear, monkeypatch)
    torch.testing.assert_close(torch.as_tensor(found[0]), torch.as_tensor(expected[0]), rtol=0, atol=1e-6)
