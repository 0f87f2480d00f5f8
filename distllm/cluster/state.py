"""The state of a run, from its directory and from SLURM together."""

from __future__ import annotations

import json
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
from distllm.fsio import read_tail
from distllm.observe.ledger import ENDS, LEDGER_FILE, last_event

_TAIL_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class RunState:
    """What is known of a run.

    Attributes:
        path: the run directory.
        job: its job under SLURM, if it was ever submitted.
        state: the job's state in SLURM, else how the run last ended, in lower case; ``unknown`` if the run
            has recorded no end and SLURM cannot be asked.
        reason: why a job waits.
        nodes: where it runs.
        step: last step that was logged.
        max_steps: last step of the run, if known.
        eta_seconds: remaining time, by the run's own last estimate.
        saved: step of the newest checkpoint.
        starts: its starts under SLURM.
        excluded: nodes that are not used.
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
        queue: this user's jobs in SLURM's queue; None if SLURM cannot be asked.
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
    """Return how the last attempt ended, or ``running``; ``lost`` if it recorded no end, ``new`` before any.

    A cancelled run counts as cancelled even if it still saved when SLURM ended it, and a run that may not be
    started again as given up, however its last start ended. If SLURM could not be ``asked``, a run without
    a recorded end may be in the queue, so its state is unknown.
    """
    last = last_event(run_dir / LEDGER_FILE, (*ENDS, "attempt"))
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
    """Read the last step's record from the end of ``metrics.jsonl``."""
    try:
        lines = read_tail(run_dir / "metrics.jsonl", _TAIL_BYTES).splitlines()
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
