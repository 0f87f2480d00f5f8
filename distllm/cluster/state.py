"""The state of a run, from its directory and from SLURM together."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distllm.cluster.control import Control
from distllm.cluster.history import History, Start
from distllm.cluster.jobs import jobs_of
from distllm.cluster.lease import LEASE_SECONDS, OWNER_FILE
from distllm.cluster.slurm import QueuedJob
from distllm.observe.ledger import LEDGER_FILE, last_event

_TAIL_BYTES = 1 << 16
_ENDS = ("done", "stopped", "failed", "oom")


@dataclass(frozen=True, slots=True)
class RunState:
    """What is known of a run.

    Attributes:
        path: the run directory.
        job: its job under SLURM, if it was ever submitted.
        state: what SLURM says of the job, else how the run last ended, in small letters; ``unknown`` if
            that is not written down and SLURM cannot be asked.
        reason: why a job waits.
        nodes: where it runs.
        step: last step that was logged.
        max_steps: where the run ends, if it has told.
        eta_seconds: time it still needs, by its own last estimate.
        saved: step of the newest checkpoint.
        starts: how often it was started under SLURM.
        excluded: nodes left out.
    """

    path: Path
    job: str | None
    state: str
    reason: str
    nodes: str
    step: int
    max_steps: int | None
    eta_seconds: float | None
    saved: int
    starts: tuple[Start, ...]
    excluded: tuple[str, ...]


def state_of(run_dir: Path, queue: Sequence[QueuedJob] | None) -> RunState:
    """Return the state of the run in ``run_dir``.

    Args:
        run_dir: the run directory.
        queue: what SLURM has of this user; None if it cannot be asked.
    """
    history, jobs = History(run_dir), jobs_of(run_dir)
    starts = tuple(history.starts())
    queued = next((one for job in jobs for one in queue or () if one.job == job), None)
    step, eta = _last_step(run_dir)
    return RunState(
        path=run_dir,
        job=queued.job if queued else next(iter(jobs), None),
        state=queued.state.lower()
        if queued
        else _ended_how(run_dir, starts, asked=queue is not None or not jobs),
        reason=queued.reason if queued and queued.state == "PENDING" else "",
        nodes=queued.nodes if queued else "",
        step=step,
        max_steps=_max_steps(run_dir),
        eta_seconds=eta,
        saved=history.saved_step(),
        starts=starts,
        excluded=tuple(sorted(history.excluded())),
    )


def _ended_how(run_dir: Path, starts: Sequence[Start], *, asked: bool) -> str:
    """Return how the last attempt ended, or that it runs; ``lost`` if it did not say, ``new`` before all.

    A run that was cancelled may have saved when SLURM ended it: it is cancelled all the same. One that may
    not be started again is given up, however its last start ended. Where SLURM could not be ``asked``,
    a run that did not say may as well be in the queue.
    """
    last = last_event(run_dir / LEDGER_FILE, (*_ENDS, "attempt"))
    if last is not None and last.kind == "done":
        return "done"
    if starts and starts[-1].given_up and (last is None or last.time < starts[-1].ended):
        return "given up"
    if last is not None and last.kind == "attempt" and _is_owned(run_dir):
        return "running"
    if Control(run_dir).asked("cancel") is not None:
        return "cancelled"
    if last is not None and last.kind != "attempt":
        return last.kind
    if not asked:
        return "unknown"
    return "lost" if last is not None or starts else "new"


def _is_owned(run_dir: Path) -> bool:
    try:
        return time.time() - (run_dir / OWNER_FILE).stat().st_mtime < LEASE_SECONDS
    except OSError:
        return False


def _last_step(run_dir: Path) -> tuple[int, float | None]:
    """Read the last step's record from the end of ``metrics.jsonl``, however long that is."""
    try:
        with (run_dir / "metrics.jsonl").open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = stream.read().splitlines()
    except OSError:
        return 0, None
    for line in reversed(lines):
        try:
            record: Any = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("kind") == "step":
            eta = record.get("eta_seconds")
            return int(record["step"]), float(eta) if isinstance(eta, int | float) else None
    return 0, None


def _max_steps(run_dir: Path) -> int | None:
    try:
        content = json.loads((run_dir / "explain.json").read_text(encoding="utf-8"))
        return int(content["max_steps"]["value"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
