"""What the arguments say where torch_xla is missing; everything else about XLA is tested in tests/tpu."""

import importlib.util

import pytest


@pytest.mark.skipif(importlib.util.find_spec("torch_xla") is not None, reason="torch_xla is installed")
def test_spmd_without_torch_xla_says_what_to_install(arguments):
    with pytest.raises(ImportError, match=r'pip install "siglip-ext\[tpu\]"'):
        arguments(xla_spmd=True)
