"""Host memory: keep large buffers instead of handing them back to the kernel after each use."""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3) in glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let freed buffers of any size be reused by this process. Does nothing where malloc is not glibc's.

    Otherwise large tensors are mapped again each time, and the kernel zeroes their pages at first
    touch: for the flat gradient buffers of a step on a CPU that costs as much as the arithmetic on
    them. The price is that the process keeps the most memory it ever used.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
