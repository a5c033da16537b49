"""Fixture checkpoints of the original code, converted once for all tests, and models made for a layout."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_siglip_ext.conversion.__main__ import main


@pytest.fixture(scope="session")
def checkpoints() -> Path:
    """Folder of the checkpoints that big_vision's own code wrote."""
    return Path(__file__).parents[1] / "fixtures" / "big_vision"


@pytest.fixture(scope="session")
def converted(checkpoints, tmp_path_factory) -> Callable[..., Path]:
    """Converts a case by the command, once for each set of options; gives the folder."""
    folders: dict[tuple[str, ...], Path] = {}
    choices = {"lit_bert": ("--text-heads", "4"), "clip_softmax_nobias": ("--text-pooling", "first")}

    def convert(case: str, *options: str) -> Path:
        key = (case, *options)
        if key not in folders:
            out = tmp_path_factory.mktemp("converted") / case
            source = checkpoints / case / "checkpoint.npz"
            assert main(["from-jax", str(source), str(out), *choices.get(case, ()), *options]) == 0
            folders[key] = out
        return folders[key]

    return convert


@pytest.fixture
def edited(checkpoints, tmp_path) -> Callable[..., Path]:
    """The SigLIP case with its arrays changed; gives the path of the new file."""

    def edit(change: Callable[[dict[str, np.ndarray]], object], case: str = "siglip1_mu16") -> Path:
        arrays = dict(np.load(checkpoints / case / "checkpoint.npz"))
        change(arrays)
        path = tmp_path / "edited.npz"
        np.savez(path, **arrays)
        return path

    return edit


def raw(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@pytest.fixture(scope="session")
def assert_same_arrays() -> Callable[[Path, Path], None]:
    """Two `.npz` files hold the same names, types, shapes and bits."""

    def check(actual: dict, expected: dict) -> None:
        assert set(actual) == set(expected)
        for name, array in expected.items():
            assert actual[name].dtype == array.dtype, name
            assert actual[name].shape == array.shape, name
            assert raw(actual[name]) == raw(array), name

    return check


@pytest.fixture
def square() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
