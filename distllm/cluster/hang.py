"""Hangs: when a run makes no progress, which rank is to blame, and what its ranks were doing.

The ranks of a step move together, so a run hangs when none of them has made progress for longer than
three times the 99th percentile of its steps, or than a floor. Phases that may take long (starting,
compiling, evaluating, saving) are given the timeout of the process group instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distllm.heartbeat import BEATS_DIRECTORY, PATIENT_PHASES, Beat, beat_path

STACKS_SIGNAL = signal.SIGRTMIN + 1
COLLECTIVES_SIGNAL = signal.SIGRTMIN + 2
HANGS_DIRECTORY = "hangs"
_TIMES_P99 = 3.0
_DUMP_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a run may go without progress, in seconds.

    Attributes:
        floor: the least limit within a step.
        long: the limit in a phase that may take long, and before the first step of a process.
    """

    floor: float
    long: float

    def limit(self, beats: Sequence[Beat]) -> float:
        """Return the limit for a run whose ranks have written ``beats``."""
        if any(beat.phase in PATIENT_PHASES or beat.steps_here == 0 for beat in beats):
            return self.long
        return max(self.floor, _TIMES_P99 * max(beat.p99_seconds for beat in beats))


@dataclass(frozen=True, slots=True)
class Hang:
    """A run that hangs.

    Attributes:
        seconds: since the last progress of any rank.
        sentence: which ranks are to blame, if known, and what the others wait for.
        ranks: the ranks to blame; empty if unknown.
        beats: what each rank was doing.
    """

    seconds: float
    sentence: str
    ranks: tuple[int, ...]
    beats: tuple[Beat, ...] = field(repr=False)

    def facts(self) -> dict[str, Any]:
        """Return the fields of the ledger's event."""
        culprits = [beat for beat in self.beats if beat.rank in self.ranks]
        return {
            "seconds": round(self.seconds, 3),
            "cause": self.sentence,
            "ranks": list(self.ranks),
            "hosts": sorted({beat.host for beat in culprits}),
            "phase": culprits[0].phase if culprits else "",
            "collective": next((beat.waits for beat in self.beats if beat.waits), ""),
            "shard": culprits[0].shard if culprits else "",
            "step": max((beat.step for beat in self.beats), default=0),
        }


def find_hang(beats: Sequence[Beat], patience: Patience, now: float) -> float | None:
    """Return for how long no rank has made progress, if that is too long; else None.

    Args:
        beats: the latest of each rank.
        patience: how long is too long.
        now: the time of the monotonic clock.
    """
    still = seconds_still(beats, now)
    return still if still > patience.limit(beats) else None


def seconds_still(beats: Sequence[Beat], now: float) -> float:
    """Return for how long no rank has made progress."""
    return now - max(beat.moved for beat in beats)


def explain_hang(beats: Sequence[Beat], seconds: float, stopped: Sequence[int]) -> Hang:
    """Find the rank that does not do what the others wait for.

    Args:
        beats: the latest of each rank.
        seconds: for how long no rank has made progress.
        stopped: ranks whose process is stopped (SIGSTOP).
    """
    waiting = [beat for beat in beats if beat.waits and beat.rank not in stopped]
    for_long = f"for {seconds:.1f} s"
    wait = f"wait{'s' if len(waiting) == 1 else ''}"
    others = f"{_ranks(waiting)} {wait} in {waiting[0].waits!r}" if waiting else "no rank waits"
    if stopped:
        culprits = [beat for beat in beats if beat.rank in stopped]
        what = f"{_who(culprits)} is stopped (SIGSTOP) {_where(culprits[0])}; {others} {for_long}"
    elif away := [beat for beat in beats if not beat.waits]:
        culprits = away
        what = f"{_who(away)} hangs {_where(away[0])}; {others} {for_long}"
    elif len({(beat.collectives, beat.waits) for beat in waiting}) > 1:
        culprits = _out_of_step(waiting)
        places = "; ".join(f"rank {beat.rank} in {beat.waits!r} {_where(beat)}" for beat in waiting)
        left = f"{_who(culprits)} skipped a collective" if culprits else "the ranks are out of step"
        what = f"{left}: they wait {for_long} in different ones: {places}"
    else:
        culprits = []
        what = f"all ranks wait {for_long} in {waiting[0].waits!r}: the network between them is broken"
    return Hang(seconds, what, tuple(beat.rank for beat in culprits), tuple(beats))


def never_began(beats: Sequence[Beat], seconds: float, silent: Sequence[int]) -> Hang:
    """Describe ranks that have not written a first heartbeat."""
    who = " and ".join(f"rank {rank}" for rank in silent)
    return Hang(seconds, f"{who} did not start within {seconds:.0f} s", tuple(silent), tuple(beats))


def keep_evidence(run_directory: Path, attempt: int, pids: Mapping[int, int]) -> Path:
    """Ask hanging ranks to write their stacks and collectives, and keep those with their beats.

    Args:
        run_directory: the run directory.
        attempt: number of the attempt, which names the directory that is kept.
        pids: the process of each rank that is alive.

    Returns:
        The directory that holds the evidence.
    """
    for pid in pids.values():
        for number in (STACKS_SIGNAL, COLLECTIVES_SIGNAL, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    deadline = time.monotonic() + _DUMP_SECONDS
    while time.monotonic() < deadline and not all(_has_dumped(run_directory, rank) for rank in pids):
        time.sleep(0.05)
    kept = run_directory / HANGS_DIRECTORY / f"attempt-{attempt:04d}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # evidence of an earlier attempt with the same number stays
        (run_directory / BEATS_DIRECTORY).rename(kept)
    return kept


def last_collectives(directory: Path, ranks: Sequence[int]) -> dict[int, str]:
    """Return the last collective in each rank's flight recorder, as ``name #number``.

    Args:
        directory: where `keep_evidence` put the files.
        ranks: the ranks to look up; those without a record are left out.
    """
    found = {}
    for rank in ranks:
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError, TypeError):
            path = collectives_path(directory, rank)
            last = json.loads(path.read_text(encoding="utf-8"))["entries"][-1]
            found[rank] = f"{last['profiling_name']} #{last['collective_seq_id']}"
    return found


def stacks_path(directory: Path, rank: int) -> Path:
    """Return where a rank writes the stacks of its threads."""
    return directory / f"rank-{rank:05d}.stacks.txt"


def collectives_path(directory: Path, rank: int) -> Path:
    """Return where a rank writes the content of its flight recorder."""
    return directory / f"rank-{rank:05d}.collectives.json"


def _has_dumped(run_directory: Path, rank: int) -> bool:
    beats = beat_path(run_directory, rank).parent
    stacks = stacks_path(beats, rank)
    return collectives_path(beats, rank).exists() and stacks.exists() and stacks.stat().st_size > 0


def _out_of_step(waiting: Sequence[Beat]) -> list[Beat]:
    """Return the ranks that are ahead of the others in the sequence of steps and collectives."""
    furthest = max((beat.step, beat.collectives) for beat in waiting)
    ahead = [beat for beat in waiting if (beat.step, beat.collectives) == furthest]
    return ahead if len(ahead) < len(waiting) else []


def _who(beats: Sequence[Beat]) -> str:
    hosts = sorted({beat.host for beat in beats if beat.host})
    return _ranks(beats) + (f" on {', '.join(hosts)}" if hosts else "")


def _ranks(beats: Sequence[Beat]) -> str:
    return " and ".join(f"rank {beat.rank}" for beat in beats)


def _where(beat: Beat) -> str:
    shard = f" (opened last: {beat.shard})" if beat.shard else ""
    return f"in {beat.phase} of step {beat.step + 1}{shard}"
