"""What this process may use of the machine it runs on."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Return the CPU cores this process may use: its affinity mask, cut by a cgroup quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP_CPU.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
