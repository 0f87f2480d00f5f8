"""How SLURM ended a start that could not record its own end, from the lines that SLURM wrote to the logs.

``slurmstepd`` writes a line with the reason to the logs of the job and of each rank before it ends them.
SLURM's accounting would know as well, but not every cluster has it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from distllm.cluster.batch import start_directory
from distllm.cluster.control import Control
from distllm.cluster.history import History, Start
from distllm.cluster.snapshot import SCRIPT
from distllm.fsio import read_tail

_ENDED = re.compile(
    r"\*\*\* (?:JOB|STEP) \S+ ON \S+ CANCELLED AT \S+?(?: DUE TO ([A-Z ]+?))?(?:,[^*]*)? \*\*\*"
)
_OUTPUT = re.compile(r"^#SBATCH --output=(.+)$", re.MULTILINE)
_BEGAN = re.compile(r"distllm: start (\d+) on ")
_TAIL_BYTES = 1 << 18
_MEANINGS = {
    "PREEMPTION": ("preempted by a job of higher priority", "nothing to do: SLURM queues the job again"),
    "TIME LIMIT": ("the time limit came before it had saved", "raise cluster.slurm.warning_seconds"),
    "NODE FAILURE": ("a node was lost", "nothing to do: the job returns without it"),
    "JOB REQUEUE": ("requeued by scontrol", "nothing to do: it continues from its last checkpoint"),
    "": ("cancelled by scancel", "submit it again to continue from its last checkpoint"),
}


@dataclass(frozen=True, slots=True)
class Ending:
    """Why SLURM ended a start, and what to do about it."""

    why: str
    remedy: str


def ending_of(run_dir: Path, start: Start) -> Ending:
    """Return how SLURM ended a start that has recorded no end."""
    if (cancel := Control(run_dir).asked("cancel")) is not None:
        return Ending(f"cancelled: {cancel.why}", _MEANINGS[""][1])
    for text in (_job_log(start), *_rank_logs(start_directory(run_dir, start.number))):
        if (found := _ENDED.search(text)) is not None:
            reason = found[1] or ""
            return Ending(*_MEANINGS.get(reason, (reason.lower(), "ask the administrators")))
    return _lost(run_dir, start)


def reason_in_log(log: Path) -> str | None:
    """Return why SLURM ended the process that wrote a log; None if the log does not say."""
    found = _ENDED.search(_tail(log))
    if found is None:
        return None
    reason = found[1] or ""
    if reason == "TIME LIMIT":  # unlike a training run, it has nothing to save
        return "the time limit was reached"
    return _MEANINGS.get(reason, (reason.lower(),))[0]


def _lost(run_dir: Path, start: Start) -> Ending:
    lost = [f"{node} {why}" for node, why in History(run_dir).excluded().items() if node in start.nodes]
    if lost:
        return Ending(f"a node was lost: {', '.join(lost)}", _MEANINGS["NODE FAILURE"][1])
    return Ending(
        "the reason was not recorded: its job script was killed, or its first node lost power or network",
        f"scontrol show node {start.nodes[0]}; scontrol show job {start.job}, or sacct -D -j {start.job}",
    )


def _job_log(start: Start) -> str:
    """Return the part of the job's log that belongs to this start."""
    text = _tail(job_log(start))
    began = [(int(found[1]), found.start()) for found in _BEGAN.finditer(text)]
    first = next((place for number, place in began if number == start.number), None)
    if first is None:
        return ""
    return text[first : next((place for number, place in began if number > start.number), None)]


def job_log(start: Start) -> Path:
    """Return the log of the job script; the tasks of a sweep write to the directory of its first run."""
    array, _, task = start.job.partition("_")
    own = Path(start.submission) / SCRIPT
    found = _OUTPUT.search(own.read_text(encoding="utf-8")) if own.exists() else None
    pattern = Path(found[1]) if found else own.with_name("job-%A-%a.log" if task else "job-%j.log")
    return pattern.with_name(pattern.name.replace("%A", array).replace("%a", task).replace("%j", array))


def _rank_logs(directory: Path) -> list[str]:
    return [_tail(path) for path in sorted(directory.glob("rank-*.log"))]


def _tail(path: Path) -> str:
    try:
        return read_tail(path, _TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""
