"""What holds for every test: one thread, a seed before each test and fixture, and how hypothesis draws its examples.

Every run of the everyday tier says the same: hypothesis derives its examples from each property test instead of
drawing them. `make fuzz` draws: each property test runs again and again, until its share of FUZZ_SECONDS is over.
"""

import os
import random
import time
import zlib


# Everyday tests are of the CPU, also where there are GPUs: `make test-gpu` names another device. The kernels for GPUs
# run in Triton's interpreter, which has to be chosen before anybody imports triton.
if os.environ.get("TEST_DEVICE", "cpu") == "cpu":
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}

import hypothesis
import numpy as np
import pytest
import torch

from modeling_siglip_ext import SiglipExtConfig
from support.exports import exported as exported
from support.models import make_config


# A process of a test that crashes says where.
os.environ.setdefault("PYTHONFAULTHANDLER", "1")


class TorchRandom:
    """Torch's generator as hypothesis knows generators: seeded for each example and put back afterwards."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_RANDOM = TorchRandom()  # hypothesis keeps a weak reference only
hypothesis.register_random(TORCH_RANDOM)
# No example is too slow: how slow it is depends on what else the machine does.
UNTIMED = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("everyday", derandomize=True, database=None, **UNTIMED)
hypothesis.settings.register_profile("fuzz", print_blob=True, **UNTIMED)
hypothesis.settings.load_profile("everyday")  # `--hypothesis-profile fuzz` loads the other one after this


def seed(name: str) -> None:
    number = zlib.crc32(name.encode())
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    """What a fixture draws depends on its name only, not on the tests that ran before it was needed."""
    seed(fixturedef.argname)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call():
    seed("test")


def pytest_collection_finish(session: pytest.Session) -> None:
    """In `make fuzz`, the seconds that each property test has."""
    if session.config.getoption("--hypothesis-profile") == "fuzz":
        processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        tests = sum(item.get_closest_marker("hypothesis") is not None for item in session.items)
        session.config.stash[SHARE] = int(os.environ.get("FUZZ_SECONDS", "600")) * processes / max(1, tests)


SHARE = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function):
    """Each further call of a property test draws new examples."""
    end = time.monotonic() + pyfuncitem.config.stash.get(SHARE, 0.0)
    result = yield
    if pyfuncitem.get_closest_marker("hypothesis"):
        arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
        while time.monotonic() < end:
            pyfuncitem.obj(**arguments)
    return result


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors gain nothing from threads, and two test processes would fight for the cores."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_config() -> SiglipExtConfig:
    return make_config()
