"""Memory that one batch leaves and the next one uses."""

import mmap
import platform
import subprocess
import sys

import pytest


# Without huge pages, which some systems give to everyone: a fault then clears 512 pages at once. Of many batches, as
# something small may come to lie in what the first ones left, so that one more block is made.
FAULTS = """
import ctypes, resource, sys, torch
from modeling_siglip_ext.memory import keep_freed_memory

PR_SET_THP_DISABLE = 41
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
if sys.argv[1] == "kept":
    keep_freed_memory()
found = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(found)[10])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keep_freed_memory does nothing without glibc")
def test_pages_are_cleared_once():
    def faults(how):
        return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)

    pages = (64 << 20) // mmap.PAGESIZE
    assert faults("kept") < pages / 20
    assert faults("given back") > pages / 2
