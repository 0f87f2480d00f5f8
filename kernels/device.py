"""Which architecture a kernel is launched for: the tensor's device, or the one a compiler check names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

ARCHITECTURES = (80, 90, 100, 120)
INTERPRETER = 0
_named: ContextVar[int | None] = ContextVar("architecture", default=None)


@contextmanager
def compiling_for(arch: int) -> Iterator[None]:
    """Choose launch parameters for ``arch`` inside the block, whatever the device."""
    token = _named.set(arch)
    try:
        yield
    finally:
        _named.reset(token)


def architecture(device: torch.device) -> int:
    """Return 80, 90, 100 or 120, or ``INTERPRETER`` for tensors that are not on a CUDA device.

    Raises:
        ValueError: the device is older than Ampere, or unknown.
    """
    named = _named.get()
    if named is not None:
        return named
    if device.type != "cuda":
        return INTERPRETER
    return row_of_capability(torch.cuda.get_device_capability(device))


def row_of_capability(capability: tuple[int, int]) -> int:
    """Map a compute capability to a row: 8.6 and 8.9 have the shared memory of 12.0.

    Raises:
        ValueError: the device is older than Ampere, or no row fits it.
    """
    major, minor = capability
    known = {(8, 0): 80, (8, 6): 120, (8, 7): 80, (8, 9): 120, (9, 0): 90}
    found = known.get(capability, {10: 100, 12: 120}.get(major))
    if found is None:
        raise ValueError(
            f"the kernels know no launch parameters for compute capability {major}.{minor}; "
            "they need 8.x (Ampere), 9.0 (Hopper), 10.x or 12.x (Blackwell)"
        )
    return found
