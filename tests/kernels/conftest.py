"""Kernels run in Triton's interpreter, with the arithmetic of the hardware and poisoned outputs.

The interpreter is chosen when a kernel's module is imported, for the whole process: these tests
run in a process of their own (`make test-kernels`).
"""

import os

os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import torch
from interp import rounding

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _faithful_numbers_and_poisoned_memory():
    rounding.install()
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
