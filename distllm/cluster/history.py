"""The starts of a run under SLURM and how they ended: ``RUN/slurm/starts.jsonl`` and ``excluded.json``.

The job script appends a line when it starts and one when it ends by its own decision. A start without
an end was ended by SLURM: preemption, a lost node, the time limit. The files outlive the job, so that the
limit of restarts and the list of bad nodes apply across requeues and chained jobs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distllm.checkpoint.format import list_checkpoints
from distllm.cluster.control import TIME_LIMIT
from distllm.fsio import append_json_line, atomic_write_json, read_json, storage_errors

HOME = Path("slurm")
_STARTS, _EXCLUDED = "starts.jsonl", "excluded.json"


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a run.

    Attributes:
        number: counts from 1.
        job: number of the job.
        nodes: the nodes of the job.
        submission: directory of the submission.
        before: step of the newest checkpoint when it began.
        time: when it began (unix seconds).
        end: how it ended; None while it runs, and if SLURM ended it.
        why: the reason.
        step: step of the newest checkpoint when it ended.
        suspect: the node on which it failed, if the node may be to blame.
        given_up: why no other start follows; empty if one may.
        ended: when that was decided (unix seconds).
    """

    number: int
    job: str
    nodes: tuple[str, ...]
    submission: str
    before: int
    time: float
    end: str | None = None
    why: str = ""
    step: int | None = None
    suspect: str | None = None
    given_up: str = ""
    ended: float = 0.0


class History:
    """The starts of one run.

    Args:
        run_dir: the run directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = Path(run_dir)
        self._home = self._run_dir / HOME

    def starts(self) -> list[Start]:
        """Return the starts so far, oldest first; incomplete lines are ignored."""
        starts: dict[int, Start] = {}
        for line in self._lines():
            if line.get("kind") == "start":
                number = len(starts) + 1
                starts[number] = Start(
                    number,
                    str(line["job"]),
                    tuple(line["nodes"]),
                    str(line["submission"]),
                    int(line["before"]),
                    float(line["time"]),
                )
            elif line.get("kind") == "end" and line.get("number") in starts:
                starts[line["number"]] = replace(
                    starts[line["number"]],
                    end=str(line["end"]),
                    why=str(line["why"]),
                    step=line.get("step"),
                    suspect=line.get("suspect"),
                )
            elif line.get("kind") == "given up" and line.get("number") in starts:
                starts[line["number"]] = replace(
                    starts[line["number"]], given_up=str(line["why"]), ended=float(line["time"])
                )
        return list(starts.values())

    def begin(self, job: str, nodes: Sequence[str], submission: str) -> Start:
        """Record a start and return it."""
        with storage_errors(self._home):
            self._home.mkdir(parents=True, exist_ok=True)
        line = {"kind": "start", "job": job, "nodes": list(nodes), "submission": submission}
        self._append(line | {"before": self.saved_step(), "time": time.time()})
        return self.starts()[-1]

    def end(self, start: Start, end: str, why: str, suspect: str | None = None) -> None:
        """Record how a start ended by the decision of its script, and which node may be to blame."""
        line = {"kind": "end", "number": start.number, "end": end, "why": why}
        line |= {"suspect": suspect} if suspect else {}
        self._append(line | {"step": self.saved_step(), "time": time.time()})

    def give_up(self, start: Start, why: str) -> None:
        """Record that no other start follows ``start``, and why."""
        self._append({"kind": "given up", "number": start.number, "why": why, "time": time.time()})

    def failures_on(self, node: str) -> int:
        """Return how many starts have failed on a node that may be to blame."""
        return sum(start.suspect == node for start in self.starts())

    def saved_step(self) -> int:
        """Return the step of the newest checkpoint, 0 without one."""
        names = [path.name for path in list_checkpoints(self._run_dir / "checkpoints")]
        return max((int(name.rpartition("-")[2]) for name in names), default=0)

    def stalls_in_a_row(self, submission: str) -> int:
        """Return how many of the latest starts in a row failed or timed out without saving a further step."""
        count = 0
        for start in reversed([start for start in self.starts() if start.submission == submission]):
            stopped = start.end == "again" and TIME_LIMIT in start.why
            if not (start.end == "failed" or stopped) or (start.step or 0) > start.before:
                break
            count += 1
        return count

    def restarts(self, submission: str) -> int:
        """Return how often a submission was started again."""
        return max(0, sum(start.submission == submission for start in self.starts()) - 1)

    def excluded(self) -> Mapping[str, str]:
        """Return the nodes that must not be used, each with the reason."""
        path = self._home / _EXCLUDED
        return dict(read_json(path)) if path.exists() else {}

    def exclude(self, nodes: Mapping[str, str]) -> None:
        """Add nodes to those that must not be used."""
        if nodes:
            atomic_write_json(self._home / _EXCLUDED, {**self.excluded(), **nodes})

    def _append(self, line: dict[str, Any]) -> None:
        append_json_line(self._home / _STARTS, line)

    def _lines(self) -> list[dict[str, Any]]:
        path = self._home / _STARTS
        lines = []
        for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                lines.append(line)
        return lines
