"""`distllm status`: the state of one run, and its starts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distllm.commands.arguments import parse_options
from distllm.commands.verbs import Options, directory_of
from distllm.units import format_duration

if TYPE_CHECKING:
    from distllm.cluster.history import Start
    from distllm.cluster.state import RunState


def run(words: Sequence[str]) -> int:
    """Print the state of a run, its starts, pending requests and the end of the log of rank 0."""
    options = parse_options("status", Options, words)
    from distllm.cluster.preparations import is_preparation

    path = directory_of(options.run, options.runs_dir, "status")
    print("\n".join(describe_preparation(path) if is_preparation(path) else _describe_run(path)))
    return 0


def _describe_run(path: Path) -> Iterator[str]:
    """Yield the lines that describe the state of a training run."""
    from distllm.cluster.batch import start_directory
    from distllm.cluster.control import Control
    from distllm.cluster.diagnose import tail
    from distllm.cluster.state import state_of
    from distllm.commands.jobs import queue_if_any

    state = state_of(path, queue_if_any([path]))
    goal = f" of {state.max_steps}" if state.max_steps else ""
    yield f"run {path}: {state.state}{f' ({state.reason})' if state.reason else ''}"
    saved = f"checkpoint of step {state.saved}" if state.saved else "no checkpoint yet"
    yield f"  step {state.step}{goal}, {saved}"
    if state.eta_seconds is not None and state.state != "done":
        yield f"  {format_duration(state.eta_seconds)} of training left, without waiting in the queue"
    if state.job:
        yield f"  job {state.job} {state.nodes}".rstrip()
    for start in state.starts:
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(start.time))
        end = end_of(path, state, start)
        yield f"  start {start.number} at {when} on {','.join(start.nodes)} from step {start.before}: {end}"
    if state.state == "given up":
        yield f"  given up: {state.starts[-1].given_up}; to resume, run the same distllm submit command"
    for node in state.excluded:
        yield f"  without {node}: see {path / 'slurm' / 'excluded.json'}"
    for kind in ("stop", "save", "cancel"):
        if (request := Control(path).asked(kind)) is not None:
            yield f"  asked to {kind}: {request.why}"
    if state.starts:
        log = start_directory(path, state.starts[-1].number) / "rank-0.log"
        yield from (f"  | {line}" for line in tail(log, 5))


def describe_preparation(path: Path) -> Iterator[str]:
    """Yield the lines that describe the state of a preparation."""
    from distllm.cluster.endings import reason_in_log
    from distllm.cluster.preparations import preparation_of
    from distllm.commands.jobs import queue_if_any

    state = preparation_of(path, queue_if_any([path]))
    yield f"preparation {path}: {state.state}{f' ({state.reason})' if state.reason else ''}"
    yield f"  dataset {state.out}"
    if state.jobs:
        where = f": {state.running} of {state.queued} tasks run on {state.nodes}" if state.running else ""
        yield f"  job {', '.join(state.jobs)}{where}"
    if state.doing:
        yield f"  {state.doing}"
    if state.state == "failed":
        for log in sorted(state.submission.path.glob("job-*-*.log")):
            if (why := reason_in_log(log)) is not None:
                yield f"  task {log.stem.rpartition('-')[2]}: {why}"
        yield "  to continue from its finished stages, run the same distllm submit prepare command"


def end_of(path: Path, state: RunState, start: Start) -> str:
    """Return how a start ended, as the job recorded it or else as SLURM shows it, or that it runs."""
    from distllm.cluster.endings import ending_of

    if start.end:
        blamed = f" (on {start.suspect})" if start.suspect else ""
        return f"{start.end}: {start.why}{blamed}"
    if state.state in ("running", "completing") and start == state.starts[-1]:
        return "runs"
    ending = ending_of(path, start)
    return f"ended by SLURM: {ending.why}; {ending.remedy}"
