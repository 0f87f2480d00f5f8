import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from distllm.dist.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for number in range(15):
    if number == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffers = torch.ones(10 * 2**20), torch.ones(12 * 2**20)
    del buffers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode):
    result = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
    return int(result.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_large_buffers_are_used_again():
    assert page_faults("kept") < 1000
    assert page_faults("returned") > 50_000
