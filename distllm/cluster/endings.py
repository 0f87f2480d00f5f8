"""How SLURM has ended a start that could not say so itself, from what SLURM left in the logs.

``slurmstepd`` writes a line into the log of the job and of each rank before it ends them, with the
reason. Accounting, which would know too, is not there on every cluster.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from distllm.cluster.batch import start_directory
from distllm.cluster.control import Control
from distllm.cluster.history import History, Start
from distllm.cluster.snapshot import SCRIPT

_ENDED = re.compile(
    r"\*\*\* (?:JOB|STEP) \S+ ON \S+ CANCELLED AT \S+?(?: DUE TO ([A-Z ]+?))?(?:,[^*]*)? \*\*\*"
)
_OUTPUT = re.compile(r"^#SBATCH --output=(.+)$", re.MULTILINE)
_BEGAN = re.compile(r"distllm: start (\d+) on ")
_TAIL_BYTES = 1 << 18
_MEANINGS = {
    "PREEMPTION": ("preempted by a job of higher priority", "nothing to do: SLURM queues the job again"),
    "TIME LIMIT": ("the time limit came before it had saved", "raise cluster.slurm.warning_seconds"),
    "NODE FAILURE": ("a node was lost", "nothing to do: the job comes back without it"),
    "JOB REQUEUE": ("queued again by scontrol requeue", "nothing to do: it goes on from its last checkpoint"),
    "": ("cancelled by scancel", "submit it again to go on from its last checkpoint"),
}


@dataclass(frozen=True, slots=True)
class Ending:
    """Why SLURM ended a start, and what to do about it."""

    why: str
    remedy: str


def ending_of(run_dir: Path, start: Start) -> Ending:
    """Return how SLURM ended a start that has no end of its own."""
    if (cancel := Control(run_dir).asked("cancel")) is not None:
        return Ending(f"cancelled: {cancel.why}", _MEANINGS[""][1])
    for text in (_job_log(start), *_rank_logs(start_directory(run_dir, start.number))):
        if (found := _ENDED.search(text)) is not None:
            reason = found[1] or ""
            return Ending(*_MEANINGS.get(reason, (reason.lower(), "ask the administrators")))
    return _lost(run_dir, start)


def told_by_slurm(log: Path) -> str | None:
    """Return how SLURM ended what wrote a log, in words; None if it did not, or could not say so."""
    found = _ENDED.search(_tail(log))
    if found is None:
        return None
    reason = found[1] or ""
    if reason == "TIME LIMIT":  # what it was needs no time to save
        return "the time limit came"
    return _MEANINGS.get(reason, (reason.lower(),))[0]


def _lost(run_dir: Path, start: Start) -> Ending:
    lost = [f"{node} {why}" for node, why in History(run_dir).excluded().items() if node in start.nodes]
    if lost:
        return Ending(f"a node was lost: {', '.join(lost)}", _MEANINGS["NODE FAILURE"][1])
    return Ending(
        "nobody wrote down why: its job script was killed, or its first node lost power or network",
        f"scontrol show node {start.nodes[0]}; scontrol show job {start.job}, or sacct -D -j {start.job}",
    )


def _job_log(start: Start) -> str:
    """Return what the log of the job holds of this start."""
    text = _tail(job_log(start))
    began = [(int(found[1]), found.start()) for found in _BEGAN.finditer(text)]
    first = next((place for number, place in began if number == start.number), None)
    if first is None:
        return ""
    return text[first : next((place for number, place in began if number > start.number), None)]


def job_log(start: Start) -> Path:
    """Return where a job script writes; the tasks of a sweep share the directory of its first run."""
    array, _, task = start.job.partition("_")
    own = Path(start.submission) / SCRIPT
    found = _OUTPUT.search(own.read_text(encoding="utf-8")) if own.exists() else None
    pattern = Path(found[1]) if found else own.with_name("job-%A-%a.log" if task else "job-%j.log")
    return pattern.with_name(pattern.name.replace("%A", array).replace("%a", task).replace("%j", array))


def _rank_logs(directory: Path) -> list[str]:
    return [_tail(path) for path in sorted(directory.glob("rank-*.log"))]


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - _TAIL_BYTES))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
