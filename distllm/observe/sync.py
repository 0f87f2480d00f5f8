"""The process next to an online run that uploads what the run writes offline.

``python -m distllm.observe.sync DIRECTORY RUN_ID PID`` follows the file while process PID lives, tries
again when the server does not answer, and uploads the rest when PID has ended. It outlives the run by
`LAST_SECONDS` at most; what is not uploaded by then, ``wandb sync`` uploads at any later time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from distllm.machine import is_alive

RETRY_SECONDS = 30.0
LAST_SECONDS = 120.0
_POLL_SECONDS = 1.0


def start_sync(files_directory: str, run_id: str) -> subprocess.Popen[bytes]:
    """Start the process for the offline run whose files lie in ``files_directory``."""
    directory = Path(files_directory).parent
    with (directory / "sync.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "distllm.observe.sync", str(directory), run_id, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def follow(directory: Path, run_id: str, pid: int, command: list[str] | None = None) -> int:
    """Upload until the run has ended and everything is uploaded, or time is up; return the exit code.

    Args:
        directory: of the offline run.
        run_id: the run that its attempts are fragments of.
        pid: the process that writes.
        command: what uploads, ``wandb`` by default.
    """
    upload = command or [sys.executable, "-m", "wandb", "beta", "sync", "--yes", "--id", run_id]
    ended_at: float | None = None
    while True:
        if ended_at is None and not is_alive(pid):
            ended_at = time.monotonic()
        live = ["--live"] if ended_at is None else []
        code = _run([*upload, *live, str(directory)], pid, ended_at)
        if ended_at is not None and (code == 0 or time.monotonic() - ended_at > LAST_SECONDS):
            return code
        if code == 0 and not is_alive(pid):
            return 0
        _pause(pid, RETRY_SECONDS if ended_at is None else _POLL_SECONDS)


def _run(command: list[str], pid: int, ended_at: float | None) -> int:
    """Run an upload; one that still runs long after the run has ended is stopped."""
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            if ended_at is None and not is_alive(pid):
                ended_at = time.monotonic()
            if ended_at is not None and time.monotonic() - ended_at > LAST_SECONDS:
                process.terminate()
                process.wait()
        return process.returncode


def _pause(pid: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and is_alive(pid):
        time.sleep(_POLL_SECONDS)
    time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(follow(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
