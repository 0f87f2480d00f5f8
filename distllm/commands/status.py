"""`distllm status`: one run, start by start."""

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
    """Print where a run stands, its starts, its requests and the end of its job's log."""
    options = parse_options("status", Options, words)
    from distllm.cluster.batch import start_directory
    from distllm.cluster.control import Control
    from distllm.cluster.diagnose import tail
    from distllm.cluster.preparations import is_preparation
    from distllm.cluster.state import state_of
    from distllm.commands.jobs import queue_if_any

    path = directory_of(options.run, options.runs_dir, "status")
    if is_preparation(path):
        print("\n".join(describe_preparation(path)))
        return 0
    state = state_of(path, queue_if_any([path]))
    goal = f" of {state.max_steps}" if state.max_steps else ""
    print(f"run {path}: {state.state}{f' ({state.reason})' if state.reason else ''}")
    saved = f"checkpoint of step {state.saved}" if state.saved else "no checkpoint yet"
    print(f"  step {state.step}{goal}, {saved}")
    if state.eta_seconds is not None and state.state != "done":
        print(f"  {format_duration(state.eta_seconds)} of training left, without waiting in the queue")
    if state.job:
        print(f"  job {state.job} {state.nodes}".rstrip())
    for start in state.starts:
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(start.time))
        end = end_of(path, state, start)
        print(f"  start {start.number} at {when} on {','.join(start.nodes)} from step {start.before}: {end}")
    if state.state == "given up":
        print(f"  given up: {state.starts[-1].given_up}; distllm submit, as before, goes on")
    for node in state.excluded:
        print(f"  without {node}: see {path / 'slurm' / 'excluded.json'}")
    for wish in ("stop", "save", "cancel"):
        if (request := Control(path).asked(wish)) is not None:
            print(f"  asked to {wish}: {request.why}")
    if state.starts:
        log = start_directory(path, state.starts[-1].number) / "rank-0.log"
        print("".join(f"  | {line}\n" for line in tail(log, 5)), end="")
    return 0


def describe_preparation(path: Path) -> Iterator[str]:
    """Yield the lines that say where a preparation stands."""
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
        yield "  distllm submit prepare, as before, goes on from what is finished"


def end_of(path: Path, state: RunState, start: Start) -> str:
    """Return how a start ended, or that it runs: in its own words, or in those that SLURM left."""
    from distllm.cluster.endings import ending_of

    if start.end:
        blamed = f" (on {start.suspect})" if start.suspect else ""
        return f"{start.end}: {start.why}{blamed}"
    if state.state in ("running", "completing") and start == state.starts[-1]:
        return "runs"
    ending = ending_of(path, start)
    return f"ended by SLURM: {ending.why}; {ending.remedy}"
