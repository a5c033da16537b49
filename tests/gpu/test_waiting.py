"""No step of the Trainer waits for the GPU, in any kind of run; `tests/training/test_waiting.py` tells on a CPU."""

import pytest

from support import runs, waiting


@pytest.mark.parametrize("kind", runs.KINDS)
def test_a_step_never_waits(kind, tmp_path, device):
    if device.type == "cpu":
        pytest.skip("a CPU is never waited for")
    waiting.assert_nothing_waits(runs.make_run(kind, tmp_path))
