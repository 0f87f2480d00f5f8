"""Starting the ranks of one machine, and making sure that they end.

Other launchers lose signals or leave ranks behind. This one forwards every signal that asks to stop, ends
the other ranks when one dies, and has the kernel kill its ranks when it is killed itself.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from distllm.errors import Interrupted, LaunchError
from distllm.machine import die_with_parent

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 5.0
_INTERRUPTED = 130
"""Exit code after a second Ctrl-C, which the rank itself has reported."""
_INFORMATIVE = (64, 65, 74)
"""Exit codes that name a cause; others may only be a consequence of another rank's failure."""

Watch = Callable[["Sequence[subprocess.Popen[bytes]]"], bool]
"""Called with the ranks while they run; returns whether they must be killed."""


@dataclass(frozen=True, slots=True)
class RanksEnd:
    """How the ranks ended.

    Attributes:
        code: 128 + number for a rank killed by a signal, else the exit code of a rank that failed,
            or 75 if ranks stopped on request, or 0.
        rank: the rank that failed; None if none did.
        given_up: whether the watch asked to kill the ranks.
    """

    code: int
    rank: int | None = None
    given_up: bool = False


class Ranks:
    """The ranks of one machine, and the signals that are forwarded to those that are running."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []
        self.asked: int | None = None

    @contextmanager
    def forwarding(self) -> Iterator[None]:
        """Forward signals to the ranks while the block runs; ``asked`` is the last one received."""
        previous = {number: signal.signal(number, self._forward) for number in FORWARDED}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def run(
        self,
        command: Sequence[str],
        *,
        num_ranks: int,
        threads_per_rank: int,
        watch: Watch | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> RanksEnd:
        """Run ``command`` as ``num_ranks`` ranks of this machine and wait for all of them.

        Args:
            command: arguments of the Python interpreter.
            num_ranks: number of ranks.
            threads_per_rank: CPU threads of each rank.
            watch: called with the ranks ten times a second.
            variables: additional environment variables.
        """
        environment = {
            # Ranks of one machine need no other interface; a value that the user has set takes precedence.
            "GLOO_SOCKET_IFNAME": "lo",
            **os.environ,
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "OMP_NUM_THREADS": str(threads_per_rank),
            **(variables or {}),
        }
        self._running = [_start(command, environment, rank) for rank in range(num_ranks)]
        if self.asked is not None:  # a signal came while the ranks were being started
            self._forward(self.asked, None)
        try:
            given_up = _wait(self._running, watch)
            if given_up:
                _kill(self._running)
            failed = [rank.poll() for rank in self._running]
        finally:
            _end(self._running)
        return _judge(failed, [rank.returncode for rank in self._running], given_up, self.asked)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        self.asked = number
        for rank in self._running:
            if rank.poll() is None:
                rank.send_signal(number)


def run_ranks(command: Sequence[str], *, num_ranks: int, threads_per_rank: int) -> int:
    """Run ``command`` as ranks of this machine once; return the code of `RanksEnd`."""
    ranks = Ranks()
    with ranks.forwarding():
        return ranks.run(command, num_ranks=num_ranks, threads_per_rank=threads_per_rank).code


def explain_exit(code: int) -> None:
    """Raise an error for a rank that could not print one itself.

    Raises:
        LaunchError: the rank was killed by a signal.
    """
    if code != _INTERRUPTED and (name := signal_of(code)):
        raise LaunchError(
            f"a rank was killed by {name}",
            where="distllm train",
            remedy="SIGKILL often means out of memory: lower engine.micro_batch_tokens. "
            "The same command resumes from the last checkpoint",
        )


def signal_of(code: int) -> str | None:
    """Return the name of the signal that an exit code above 128 stands for; None if there is none."""
    return signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else None


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal or a debugger."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] in ("T", "t")


def _start(command: Sequence[str], environment: Mapping[str, str], rank: int) -> subprocess.Popen[bytes]:
    own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    return subprocess.Popen(
        [sys.executable, *command], env=own, start_new_session=True, preexec_fn=die_with_parent
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(ranks: Sequence[subprocess.Popen[bytes]], watch: Watch | None) -> bool:
    """Return when all ranks have stopped or one has failed; the result is whether the watch gave up."""
    while True:
        codes = [rank.poll() for rank in ranks]
        if any(code not in (None, 0, Interrupted.exit_code) for code in codes):
            return False
        if all(code is not None for code in codes):
            return False
        if watch is not None and watch(ranks):
            return True
        time.sleep(_POLL_SECONDS)


def _judge(failed: Sequence[int | None], ended: Sequence[int], given_up: bool, asked: int | None) -> RanksEnd:
    """Return what ended the ranks.

    Args:
        failed: exit codes at the time when the first rank failed; None for ranks that were still running.
        ended: exit codes of all ranks in the end, including those that this process ended.
        given_up: whether the watch asked to kill the ranks.
        asked: the signal that asked to stop, if there was one.
    """
    if given_up:
        return RanksEnd(LaunchError.exit_code, given_up=True)
    if asked is not None and -asked in failed:
        # The signal came before the ranks handled signals: no step was taken since the last checkpoint.
        return RanksEnd(Interrupted.exit_code)
    # A killed rank is the cause: ranks that lose it exit by themselves. Otherwise an exit code that names a
    # cause counts, also of a rank that exits a moment later.
    wrong = [(code, rank) for rank, code in enumerate(failed) if code not in (None, 0, Interrupted.exit_code)]
    for code, rank in wrong:
        if code is not None and code < 0:
            return RanksEnd(128 - code, rank)
    for rank, code in enumerate(ended):
        if code in _INFORMATIVE:
            return RanksEnd(code, rank)
    if wrong:
        return RanksEnd(wrong[0][0] or 0, wrong[0][1])
    return RanksEnd(Interrupted.exit_code if any(failed) else 0)


def _kill(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
            rank.wait()


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the ranks that are still running: they would wait for the failed one for ever."""
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
