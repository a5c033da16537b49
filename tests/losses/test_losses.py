"""Values and gradients of the losses on one process, against JAX, float64 and the papers' expressions."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_siglip_ext.losses import eager, sigmoid_loss, softmax_loss, tiles
from modeling_siglip_ext.losses.tiled_sigmoid import softplus_sum_
from support.losses import (
    CASES,
    HEADS,
    LOSSES,
    assert_any_subset,
    assert_big_vision,
    assert_close,
    assert_definition,
    batch,
    value_and_gradients,
)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles and strips that a batch of some dozens does not fill evenly."""
    monkeypatch.setattr(tiles, "CPU_TILE", (16, 8))
    monkeypatch.setattr(tiles, "STRIP", 32)


@pytest.mark.parametrize("implementation", ["eager", "tiled"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("with_ids", [False, True])
def test_definition(loss, implementation, with_ids, small_tiles):
    assert_definition(loss, with_ids, 1e-12, implementation=implementation)


@pytest.mark.parametrize("implementation", ["eager", "tiled"])
@pytest.mark.parametrize("case", CASES)
def test_big_vision(case, implementation):
    assert_big_vision(case, 1e-5, implementation=implementation)


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.integers(1, 70),
    width=st.integers(1, 9),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    strip=st.integers(1, 300),
    head=st.sampled_from(HEADS),
    loss=st.sampled_from(LOSSES),
    repeats=st.sampled_from([None, 1, 3]),
)
def test_any_tiles(pairs, width, rows, columns, strip, head, loss, repeats):
    arguments = batch(pairs, width, temperature=head[0], bias=head[1])
    ids = None if repeats is None else torch.arange(pairs) // repeats
    expected = value_and_gradients(loss, arguments, implementation="eager", pair_ids=ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "CPU_TILE", (rows, columns))
        patch.setattr(tiles, "STRIP", strip)
        got = value_and_gradients(loss, arguments, implementation="tiled", pair_ids=ids)
    assert_close(got, expected, 1e-11)


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_logits(loss, small_tiles):
    """Far beyond where exp overflows, and on both sides of where the tiles change their formula."""
    for temperature, bias in ((1000.0, 0.0), (300.0, 500.0), (21.0, 0.0), (59.0, 0.0), (61.0, -200.0)):
        arguments = batch(33, temperature=temperature, bias=bias)
        expected = value_and_gradients(loss, arguments, implementation="eager")
        assert_close(value_and_gradients(loss, arguments, implementation="tiled"), expected, 1e-11)
        single = [x.float() for x in arguments]
        got = value_and_gradients(loss, single, implementation="tiled")
        assert_close(got, expected, 1e-4)


@settings(max_examples=60, deadline=None)
@given(st.floats(-40, 60), st.floats(0.1, 40), st.sampled_from([torch.float32, torch.float64]), st.integers(1, 40))
def test_softplus_of_a_strip(mean, spread, dtype, rows):
    """Sums of softplus with one logarithm for many keep their digits, hard negatives or not."""
    generator = torch.Generator().manual_seed(rows)
    z = (mean + spread * torch.randn(rows, 16, generator=generator, dtype=torch.float64)).to(dtype)
    z[rows // 2, 3] = -torch.inf  # a positive, taken out
    expected, derivative = F.softplus(z.double(), threshold=60).sum(), torch.sigmoid(z.double())
    total = softplus_sum_(z, derivative=True)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    assert (total - expected).abs() <= tolerance * expected
    assert (z - derivative).abs().max() <= tolerance


@pytest.mark.parametrize("head", HEADS)
def test_bfloat16(head, monkeypatch):
    """Against float64 on the same bfloat16 numbers, with operands in float32 and in bfloat16."""
    arguments = batch(700, 64, temperature=head[0], bias=head[1])
    rounded = [x.bfloat16() for x in arguments[:2]] + [x.float() for x in arguments[2:]]
    expected = value_and_gradients(sigmoid_loss, [x.double() for x in rounded], implementation="eager")
    for native in (False, True):
        monkeypatch.setattr(tiles, "multiplies", lambda dtype, device, native=native: native)
        got = value_and_gradients(sigmoid_loss, rounded, implementation="tiled")
        assert got[0].dtype == torch.float32
        assert got[1].dtype == torch.bfloat16
        assert abs(got[0] - expected[0]) <= 1e-4 * expected[0]
        for one, other in zip(got[3:], expected[3:]):
            assert abs(one - other) <= 5e-3 * abs(other)
        for one, other in zip(got[1:3], expected[1:3]):
            assert (one - other).norm() <= 1e-2 * other.norm()


@pytest.mark.parametrize("pairs", [2048, pytest.param(16384, marks=pytest.mark.slow)])
def test_float16_does_not_underflow(pairs):
    """Gradients of 1e-8 vanish in float16; with a GradScaler's factor they must all be there."""
    images, texts, scale, bias = batch(pairs, 8, dtype=torch.float32)
    arguments = [images.half(), texts.half(), scale, bias]
    factor = 2.0**16
    got = value_and_gradients(lambda *x: factor * sigmoid_loss(*x, implementation="tiled"), arguments)
    single = [x.float() for x in arguments]
    expected = value_and_gradients(lambda *x: factor * sigmoid_loss(*x, implementation="tiled"), single)
    for one, other in zip(got[1:3], expected[1:3]):
        assert one.dtype == torch.float16
        assert one.isfinite().all()
        large = other.abs() > 6e-8  # what float16 can hold at all
        assert (one[large] != 0).all()
        assert (one - other).norm() <= 1e-3 * other.norm()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_leaves_logits_in_float32(loss, dtype):
    arguments = batch(64, dtype=torch.float32)
    for implementation in ("eager", "tiled"):
        expected = loss(*arguments, implementation=implementation)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(loss(*arguments, implementation=implementation), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_any_subset_of_gradients(loss, small_tiles):
    assert_any_subset(loss, batch(20), rtol=1e-12, atol=1e-14, implementation="tiled")


@pytest.mark.parametrize("loss", LOSSES)
def test_no_gradient_is_computed_that_nobody_asks_for(loss, monkeypatch):
    arguments = [x.requires_grad_() for x in batch(20)]
    expected = loss(*arguments, implementation="tiled").detach()

    def forbidden(*_):
        raise AssertionError("a product for a gradient")

    monkeypatch.setattr(tiles.TileProducts, "add_product_", forbidden)
    with torch.no_grad():
        assert torch.equal(loss(*arguments, implementation="tiled"), expected)
    assert torch.equal(loss(*(x.detach() for x in arguments), implementation="tiled"), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_repeated_backward_and_second_derivative(loss):
    arguments = [x.requires_grad_() for x in batch(12)]
    value = loss(*arguments, implementation="tiled")
    first = torch.autograd.grad(2 * value, arguments, retain_graph=True)
    second = torch.autograd.grad(value, arguments)
    for one, other in zip(first, second):
        torch.testing.assert_close(one, 2 * other)
    assert not any(gradient.requires_grad for gradient in second)

    gradient, *_ = torch.autograd.grad(loss(*arguments, implementation="tiled"), arguments, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("implementation", ["eager", "tiled"])
def test_compiles_as_one_graph(loss, implementation):
    arguments = batch(40)
    expected = value_and_gradients(loss, arguments, implementation=implementation)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    def model(images, texts, scale, bias):
        return loss(F.normalize(images), F.normalize(texts), scale, bias, implementation=implementation)

    got = value_and_gradients(torch.compile(model, fullgraph=True, backend=backend), arguments)
    assert_close(got[:1], expected[:1], 1e-12)
    assert len(graphs) == 1
    assert len(list(graphs[0].graph.nodes)) < 60  # the tiles are not unrolled


def test_operators_obey_the_rules_of_torch_library():
    from modeling_siglip_ext.losses.tiled_sigmoid import tiled_sigmoid_loss
    from modeling_siglip_ext.losses.tiled_softmax import tiled_softmax_loss

    images, texts, scale, bias = (x.requires_grad_() for x in batch(12))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for ids in (None, torch.arange(12) // 2):
        for needs in ([True] * 4, [False, True, False, False]):
            torch.library.opcheck(
                tiled_sigmoid_loss, (images, texts, scale, bias, ids, needs, "", "auto", False), test_utils=checks
            )
            torch.library.opcheck(
                tiled_softmax_loss, (images, texts, scale, ids, needs[:3], "", "auto", False), test_utils=checks
            )


@pytest.mark.parametrize("loss", LOSSES)
def test_saved_memory_is_linear_in_the_batch(loss):
    def saved(pairs):
        sizes = []
        arguments = [x.requires_grad_() for x in batch(pairs, dtype=torch.float32)]
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
            loss(*arguments, implementation="tiled")
        return sum(sizes)

    assert saved(512) >= 2 * 512 * 16 * 4
    assert saved(2048) <= 4 * saved(512)


def test_auto_is_eager_for_small_batches_and_tiled_for_large_ones():
    def operator(pairs):
        arguments = [x.requires_grad_() for x in batch(pairs, 4, dtype=torch.float32)]
        return str(sigmoid_loss(*arguments).grad_fn)

    assert "siglip_ext" not in operator(64)
    assert "siglip_ext" in operator(1500)


def test_the_copy_that_travels_with_models_agrees():
    for ids in (None, torch.arange(12) // 3):
        for name, loss in (("sigmoid_loss", sigmoid_loss), ("softmax_loss", softmax_loss)):
            arguments = batch(12)
            expected = value_and_gradients(loss, arguments, pair_ids=ids)
            assert_close(value_and_gradients(getattr(eager, name), arguments, pair_ids=ids), expected, 1e-12)


def test_softmax_needs_no_bias():
    images, texts, scale, bias = batch(9)
    assert torch.equal(softmax_loss(images, texts, scale), softmax_loss(images, texts, scale, bias))
