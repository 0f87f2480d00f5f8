"""Starting the ranks of one machine and staying responsible for them until all are gone.

Launchers lose signals or orphan ranks; this one forwards every request to stop, ends the other
ranks when one dies, and takes the ranks with it when it is killed itself.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from distllm.errors import Interrupted, LaunchError

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


def run_ranks(command: Sequence[str], *, num_ranks: int, threads_per_rank: int) -> int:
    """Run ``command`` as ``num_ranks`` ranks of one machine and wait for all of them.

    Returns:
        128 + number for a rank killed by a signal, else the exit code of a rank that failed, or 0.
    """
    environment = {
        **os.environ,
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(threads_per_rank),
    }
    ranks = [_start(command, environment, rank) for rank in range(num_ranks)]
    previous = {number: signal.signal(number, _forward_to(ranks)) for number in FORWARDED}
    try:
        return _wait(ranks)
    finally:
        _end(ranks)
        for number, handler in previous.items():
            signal.signal(number, handler)


def explain_exit(code: int) -> None:
    """Raise the error that the exit code of a rank stands for, if its own message was not printed.

    Raises:
        LaunchError: the rank was killed by a signal and could not say so itself.
    """
    if code - 128 in set(signal.Signals):
        name = signal.Signals(code - 128).name
        raise LaunchError(
            f"a rank was killed by {name}",
            where="distllm train",
            remedy="SIGKILL often means out of memory: lower engine.micro_batch_tokens. "
            "The same command resumes from the last checkpoint",
        )


def _start(command: Sequence[str], environment: Mapping[str, str], rank: int) -> subprocess.Popen[bytes]:
    own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    return subprocess.Popen(
        [sys.executable, *command], env=own, start_new_session=True, preexec_fn=_die_with_parent
    )


def _die_with_parent() -> None:
    """Ask the kernel to kill this rank when its launcher is gone, however it went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _forward_to(ranks: list[subprocess.Popen[bytes]]) -> signal._HANDLER:
    def forward(number: int, _frame: FrameType | None) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    return forward


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = [code for code in codes if code not in (None, 0, Interrupted.exit_code)]
        if failed:
            # A rank that was killed is the cause; those that then lost it exit by themselves.
            return next((128 - code for code in failed if code < 0), failed[0])
        if all(code is not None for code in codes):
            return Interrupted.exit_code if any(codes) else 0
        time.sleep(_POLL_SECONDS)


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    """End the ranks that still run: those left behind wait for one that will never answer."""
    alive = [rank for rank in ranks if rank.poll() is None]
    for rank in alive:
        rank.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for rank in alive:
        try:
            rank.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()
