"""Memory that one batch leaves and the next one uses."""

import platform
import subprocess
import sys

import pytest


FAULTS = """
import resource, sys, torch
from modeling_siglip_ext.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_pages_are_cleared_once():
    def faults(how):
        return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)

    pages = (64 << 20) // 4096
    assert faults("kept") < pages / 20
    assert faults("given back") > pages / 2
