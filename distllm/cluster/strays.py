"""Ranks of earlier starts that live on where SLURM lost sight of them, and hold what the next ones need."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from distllm.cluster.fence import VARIABLE

_PROCESSES = Path("/proc")


def end_strays(run_dir: Path) -> list[int]:
    """Kill this user's ranks of this run on this machine, and return their process numbers.

    To be called while no start of the run has ranks. A rank is known by the start that its environment
    names (`distllm.cluster.fence`), never by what its command line looks like.
    """
    mark = f"{VARIABLE}={run_dir.absolute()}{os.sep}".encode()
    ended = []
    for path in _PROCESSES.glob("[0-9]*/environ"):
        pid = int(path.parent.name)
        with contextlib.suppress(OSError):  # of another user, or gone by now
            if pid != os.getpid() and any(entry.startswith(mark) for entry in path.read_bytes().split(b"\0")):
                os.kill(pid, signal.SIGKILL)
                ended.append(pid)
    return sorted(ended)
