"""What is refused where there is no XLA device; everything else about XLA is tested in tests/tpu."""

import importlib.util

import pytest

from modeling_siglip_ext.training.trainer import SiglipExtTrainer


@pytest.mark.skipif(importlib.util.find_spec("torch_xla") is not None, reason="torch_xla is installed")
def test_spmd_without_torch_xla_says_what_to_install(arguments):
    with pytest.raises(ImportError, match=r'pip install "siglip-ext\[tpu\]"'):
        arguments(xla_spmd=True)


def test_sharding_without_xla_devices_is_refused(our_model, arguments):
    with pytest.raises(ValueError, match="over XLA devices; this run is on cpu"):
        SiglipExtTrainer(model=our_model, args=arguments(xla_shard_parameters=True))
