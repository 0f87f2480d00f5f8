"""Ranks of earlier starts that still run because SLURM lost contact with them, and occupy GPUs and memory."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from distllm.cluster.fence import VARIABLE

_PROCESSES = Path("/proc")


def end_strays(run_dir: Path) -> list[int]:
    """Kill this user's ranks of this run on this machine, and return their process ids.

    Must be called while no start of the run has ranks. A rank is recognised by the start that its environment
    names (`distllm.cluster.fence`), never by its command line.
    """
    mark = f"{VARIABLE}={run_dir.absolute()}{os.sep}".encode()
    ended = []
    for path in _PROCESSES.glob("[0-9]*/environ"):
        pid = int(path.parent.name)
        with contextlib.suppress(OSError):  # the process belongs to another user, or has ended
            if pid != os.getpid() and any(entry.startswith(mark) for entry in path.read_bytes().split(b"\0")):
                os.kill(pid, signal.SIGKILL)
                ended.append(pid)
    return sorted(ended)
