"""The process that owns a run: it starts the ranks, watches them, and restarts them.

The exit code says what a failure means (see `distllm.errors`): 64 and 65 would fail again and are never
retried, 74 needs another disk or machine, 75 was asked for. Everything else is retried while the run makes
progress: an attempt that saved a newer checkpoint resets the count of restarts, and one that fails at the
same step and with the same cause as the attempt before ends the run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distllm.checkpoint.format import list_checkpoints
from distllm.cluster.hang import (
    Hang,
    Patience,
    explain_hang,
    keep_evidence,
    last_collectives,
    never_began,
    seconds_still,
)
from distllm.cluster.lease import TOKEN_VARIABLE, Lease, take_lease
from distllm.cluster.local import Ranks, RanksEnd, is_stopped, signal_of
from distllm.cluster.outcome import SAME_FAILURE, failed_again
from distllm.errors import DataError
from distllm.heartbeat import BEATS_DIRECTORY, read_beat
from distllm.observe.ledger import LEDGER_FILE, Event, Ledger, read_events

FINAL = (0, 64, 65, 74, 75, 130)
"""Exit codes after which the ranks are not started again."""

_CONFIRM_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """A run to supervise.

    Attributes:
        command: the command of one rank, without the interpreter.
        directory: the run directory.
        num_ranks: ranks on this machine.
        threads_per_rank: CPU threads of each rank.
        max_restarts: restarts in a row that bring no newer checkpoint.
        patience: how long the ranks may go without progress.
    """

    command: Sequence[str]
    directory: Path
    num_ranks: int
    threads_per_rank: int
    max_restarts: int
    patience: Patience


def supervise(job: Job) -> int:
    """Run ``job`` to its end, restarting the ranks after failures that may pass; return the exit code.

    Raises:
        RunDirectoryBusy: another process trains in the run directory.
        StorageError: the run directory cannot be written.
    """
    lease = take_lease(job.directory)
    ranks, used = Ranks(), 0
    try:
        with ranks.forwarding():
            while True:
                before, seen = _newest_step(job.directory), len(_events(job.directory))
                end = _run_once(job, ranks, lease)
                if end.code in FINAL or ranks.asked is not None:
                    return end.code
                if (same := failed_again(_events(job.directory), seen)) is not None:
                    _tell(f"not restarted: {same}")
                    return SAME_FAILURE
                used = 1 if _newest_step(job.directory) > before else used + 1
                if used > job.max_restarts:
                    _tell(f"not restarted: {used - 1} restarts brought no new checkpoint")
                    return end.code
                _ledger(job.directory).event("restart", restart=used, of=job.max_restarts)
                _tell(f"restarting the ranks ({used} of {job.max_restarts})")
    finally:
        lease.release()


def _run_once(job: Job, ranks: Ranks, lease: Lease) -> RanksEnd:
    """Run the ranks until they end; record a rank that was killed, which cannot do so itself."""
    shutil.rmtree(job.directory / BEATS_DIRECTORY, ignore_errors=True)
    watch = _Watch(job, lease)
    end = ranks.run(
        job.command,
        num_ranks=job.num_ranks,
        threads_per_rank=job.threads_per_rank,
        watch=watch,
        variables={TOKEN_VARIABLE: lease.token},
    )
    if end.code not in FINAL and (name := signal_of(end.code)):
        _ledger(job.directory).event("killed", rank=end.rank, signal=name)
        _tell(f"rank {end.rank} was killed by {name}")
    return end


@dataclass(slots=True)
class _Watch:
    """Watches the ranks: renews the lease, and notices when none of them makes progress."""

    job: Job
    lease: Lease
    hang: Hang | None = None
    _began: float = field(default_factory=time.monotonic)
    _looked: float = field(default_factory=time.monotonic)
    _suspected: float | None = None

    def __call__(self, ranks: Sequence[subprocess.Popen[bytes]]) -> bool:
        """Return whether the ranks hang; if so, what they were doing has been written down."""
        self.lease.renew()
        now, slept = time.monotonic(), time.monotonic() - self._looked
        self._looked = now
        found = [read_beat(self.job.directory, rank) for rank in range(len(ranks))]
        beats = [beat for beat in found if beat is not None]
        silent = [rank for rank, beat in enumerate(found) if beat is None]
        # A hang is confirmed by a second look, so the first one comes a moment before the limit.
        still = (now - self._began) if silent else seconds_still(beats, now)
        limit = self.job.patience.long if silent else self.job.patience.limit(beats)
        if still + _CONFIRM_SECONDS <= limit or slept > _CONFIRM_SECONDS:  # this process was stopped too
            self._suspected = None
            return False
        self._suspected = now if self._suspected is None else self._suspected
        if now - self._suspected < _CONFIRM_SECONDS or still <= limit:
            return False
        if silent:
            self.hang = never_began(beats, still, silent)
        else:
            stopped = [number for number, rank in enumerate(ranks) if is_stopped(rank.pid)]
            self.hang = explain_hang(beats, still, stopped)
        self._write_down(ranks)
        return True

    def _write_down(self, ranks: Sequence[subprocess.Popen[bytes]]) -> None:
        assert self.hang is not None
        directory = self.job.directory
        # Report before asking the ranks for evidence: they may answer late or never.
        _tell(f"the run hangs: {self.hang.sentence}")
        pids = {number: rank.pid for number, rank in enumerate(ranks) if rank.poll() is None}
        kept = keep_evidence(directory, _attempt(directory), pids)
        last = last_collectives(kept, sorted(pids))
        _ledger(directory).event(
            "hang",
            **self.hang.facts(),
            last_collectives={str(rank): what for rank, what in last.items()},
            stacks=str(kept.relative_to(directory)),
        )
        _tell(f"stacks and collectives of the ranks: {kept}")


def _newest_step(directory: Path) -> int:
    """Return the step of the newest checkpoint, -1 without any."""
    newest = next(iter(list_checkpoints(directory / "checkpoints")), None)
    return int(newest.name.rpartition("-")[2]) if newest else -1


def _ledger(directory: Path) -> Ledger:
    return Ledger(directory / LEDGER_FILE, _attempt(directory), _tell)


def _attempt(directory: Path) -> int:
    """Return the number of the current or last attempt, 1 before the first."""
    return max((event.attempt for event in _events(directory)), default=1)


def _events(directory: Path) -> list[Event]:
    path = directory / LEDGER_FILE
    if path.exists():
        try:
            return read_events(path)
        except DataError as error:
            _tell(error.cause)
    return []


def _tell(text: str) -> None:
    print(f"distllm: {text}", file=sys.stderr, flush=True)
