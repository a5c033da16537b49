"""The Triton kernels in Triton's interpreter, to the bounds of the tiled loss; compiled, they run in tests/gpu."""

import json
import os
import subprocess
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_siglip_ext.losses import contrastive, sigmoid_loss, tiles
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


pytest.importorskip("triton")
pytestmark = [
    pytest.mark.skipif(not tiles.INTERPRETED, reason="triton was imported without its interpreter"),
    # the interpreter's numpy has a logarithm of zero for rows that are not there
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),
]


@pytest.fixture
def small_kernels(monkeypatch):
    """Tiles and blocks that a batch of some dozens does not fill evenly."""
    shrink(monkeypatch, (24, 40), 16, (8, 16))


def shrink(patch, tile, columns, block):
    from modeling_siglip_ext.losses import triton_tiles

    patch.setattr(tiles, "TRITON_TILE", tile)
    patch.setattr(triton_tiles, "COLUMNS", columns)
    patch.setattr(triton_tiles, "BLOCK", block)


def single(arguments):
    return [x.float() for x in arguments]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("with_ids", [False, True])
def test_definition(loss, with_ids, small_kernels):
    assert_definition(loss, with_ids, 1e-5, dtype=torch.float32, implementation="triton")


@pytest.mark.parametrize("case", CASES)
def test_big_vision(case, small_kernels):
    assert_big_vision(case, 1e-5, implementation="triton")


@settings(max_examples=8, deadline=None)
@given(
    pairs=st.integers(1, 24),
    width=st.integers(1, 9),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    kernel=st.sampled_from([(8, (4, 8)), (16, (8, 16)), (32, (16, 4))]),
    head=st.sampled_from(HEADS),
    loss=st.sampled_from(LOSSES),
    repeats=st.sampled_from([None, 1, 3]),
)
def test_any_tiles(pairs, width, rows, columns, kernel, head, loss, repeats):
    arguments = batch(pairs, width, temperature=head[0], bias=head[1])
    ids = None if repeats is None else torch.arange(pairs) // repeats
    expected = value_and_gradients(loss, arguments, implementation="eager", pair_ids=ids)
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, (rows, columns), *kernel)
        got = value_and_gradients(loss, single(arguments), implementation="triton", pair_ids=ids)
    for one, other in zip(got, expected):  # where softmaxes and targets cancel, float32 leaves the rounding of logits
        assert (one - other).norm() <= 1e-5 * (other.norm() + head[0] / 10)


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_logits(loss, small_kernels):
    """Far beyond where exp overflows, where one logarithm for many would, and blocks too wide for one exp."""
    for temperature, bias in ((1000.0, 0.0), (300.0, 500.0), (21.0, 0.0), (61.0, -200.0)):
        arguments = batch(33, temperature=temperature, bias=bias)
        expected = value_and_gradients(loss, arguments, implementation="eager")
        assert_close(value_and_gradients(loss, single(arguments), implementation="triton"), expected, 1e-4)


def test_a_small_loss_keeps_its_digits(small_kernels):
    """Of a logarithm of 1 + 1e-13 float32 would leave nothing."""
    images = torch.eye(40)
    arguments = [images, images, torch.tensor(60.0).log(), torch.tensor(-30.0)]
    expected = value_and_gradients(sigmoid_loss, [x.double() for x in arguments], implementation="eager")
    assert 0 < expected[0] < 1e-11
    got = value_and_gradients(sigmoid_loss, arguments, implementation="triton")
    assert abs(got[0] - expected[0]) <= 1e-5 * expected[0]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", HEADS)
def test_half_precision(loss, dtype, head, small_kernels, monkeypatch):
    """Against float64 on the same numbers. What a GPU multiplies in bfloat16 is multiplied so here, too."""
    monkeypatch.setattr(tiles, "multiplies", lambda dtype, device: dtype != torch.float16)
    images, texts, *rest = batch(50, 64, temperature=head[0], bias=head[1])
    arguments = [images.to(dtype), texts.to(dtype), *single(rest)]
    expected = value_and_gradients(loss, [x.double() for x in arguments], implementation="eager")
    got = value_and_gradients(loss, arguments, implementation="triton")
    assert got[0].dtype == torch.float32
    assert got[1].dtype == dtype
    assert_close([got[0], *got[3:]], [expected[0], *expected[3:]], 1e-2)
    # a softmax of cosines rounded to bfloat16 and multiplied by 117 is off by as much as they are
    assert_close(got, expected, 2e-2 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.parametrize("loss", LOSSES)
def test_any_subset_of_gradients(loss, small_kernels):
    assert_any_subset(loss, single(batch(20)), rtol=1e-6, atol=1e-9, implementation="triton")


@pytest.mark.parametrize("loss", LOSSES)
def test_kernels_start_on_the_device_of_their_tile(loss, small_kernels, monkeypatch):
    """Triton would start them on the current device. On a CPU there is but one: what counts is what surrounds them."""
    from modeling_siglip_ext.losses import triton_tiles

    around, started = [], []

    @contextmanager
    def launching_on(tile):
        around.append(tile.device)
        yield
        around.pop()

    class Watched:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            def start(tile, *rest, **options):
                started.append(around == [tile.device])
                return self.kernel[grid](tile, *rest, **options)

            return start

    monkeypatch.setattr(triton_tiles, "launching_on", launching_on)
    for name in ("_sigmoid_kernel", "_log_sum_exp_kernel", "_softmax_kernel"):
        monkeypatch.setattr(triton_tiles, name, Watched(getattr(triton_tiles, name)))
    value_and_gradients(loss, single(batch(20)), implementation="triton")
    assert started
    assert all(started)


def test_without_a_c_compiler_it_is_refused_and_not_chosen(monkeypatch):
    embeds = types.SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, shape=(9, 4))
    monkeypatch.setattr(tiles, "INTERPRETED", False)
    monkeypatch.setattr(tiles, "HAS_C_COMPILER", False)
    assert "a C compiler" in tiles.triton_problem(embeds)
    assert contrastive._choose("auto", "gloo", embeds) == "tiled"
    monkeypatch.setattr(tiles, "HAS_C_COMPILER", True)
    assert tiles.triton_problem(embeds) is None
    assert contrastive._choose("auto", "gloo", embeds) == "triton"


@pytest.mark.parametrize(("found", "expected"), [("gcc", "True"), ("cc", "False")])
def test_a_c_compiler_is_sought_where_triton_seeks_it(found, expected, tmp_path):
    (tmp_path / found).touch(0o755)
    script = "from modeling_siglip_ext.losses import tiles; print(tiles.HAS_C_COMPILER)"
    environment = {name: value for name, value in os.environ.items() if name != "CC"} | {"PATH": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == expected


def test_float64_is_refused():
    with pytest.raises(ValueError, match="'triton' needs float32, bfloat16 or float16 embeddings, got float64"):
        sigmoid_loss(*batch(4), implementation="triton")


@pytest.mark.slow
def test_kernels_compile_without_a_gpu(tmp_path):
    """To PTX and on to machine code for two generations of GPUs, with the registers that there are."""
    script = Path(__file__).parents[2] / "benchmarks" / "loss_kernels.py"
    command = [sys.executable, str(script), "--output", str(tmp_path / "kernels.json")]
    environment = {"TRITON_INTERPRET": "", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run(command, env=os.environ | environment, check=True, capture_output=True)
    found = json.loads((tmp_path / "kernels.json").read_text())
    assert len(found) == 24
    for name, taken in found.items():
        assert taken["ptx"] > 0, name
        assert taken["spilled"] <= 16, name
        assert taken["registers"] <= 255, name
