"""Tests on torch_xla, in processes of their own: the number of devices and SPMD are set once in a process."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


FOLDER = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def needs_torch_xla():
    if importlib.util.find_spec("torch_xla") is None:
        pytest.skip("torch_xla is not installed: `make test-tpu` makes an environment for it")


@pytest.fixture(scope="session")
def run():
    """Run a script of this folder on XLA:CPU devices and give its lines; it must end without an error."""

    def start(script: str, *arguments: object, devices: int = 1, **environment: str) -> list[str]:
        settings = {
            "PJRT_DEVICE": "CPU",
            "CPU_NUM_DEVICES": str(devices),
            "XLA_THREAD_POOL_SIZE": "16",  # collectives wait for each other, one thread a device
            "OMP_NUM_THREADS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            **environment,
        }
        command = [sys.executable, str(FOLDER / script), *map(str, arguments)]
        done = subprocess.run(
            command, env=os.environ | settings, capture_output=True, text=True, timeout=1800, check=False
        )
        timeouts = "\n".join(line for line in done.stderr.splitlines() if "Termination timeout" in line)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}\n{timeouts}"
        return done.stdout.splitlines()

    return start
