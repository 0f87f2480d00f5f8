"""Host memory: reuse large buffers instead of returning them to the kernel after each use."""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3) in glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process reuse freed buffers of any size. Does nothing with a malloc other than glibc's.

    Otherwise large tensors are mapped anew each time, and the kernel zeroes their pages at first touch: for the
    flat gradient buffers of a step on a CPU that costs as much as the arithmetic on them. The price is that the
    process keeps its peak memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
