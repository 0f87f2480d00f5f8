import functools
import os

import pytest

# Set before torch is imported: threads of several test processes on the same cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@functools.cache
def without_cuda():
    """Why tests marked ``gpu`` cannot run here; an empty string if they can."""
    import torch

    if torch.cuda.is_available():
        return ""
    return f"needs a CUDA device, and torch {torch.__version__} sees none here"


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and (reason := without_cuda()):
        pytest.skip(reason)
