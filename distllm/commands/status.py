"""`distllm status`: one run, start by start."""

from __future__ import annotations

import time
from collections.abc import Sequence

from distllm.commands.arguments import parse_options
from distllm.commands.verbs import Options, directory_of
from distllm.units import format_duration


def run(words: Sequence[str]) -> int:
    """Print where a run stands, its starts, its requests and the end of its job's log."""
    options = parse_options("status", Options, words)
    from distllm.cluster.batch import start_directory
    from distllm.cluster.control import Control
    from distllm.cluster.diagnose import tail
    from distllm.cluster.state import state_of
    from distllm.commands.jobs import queue_if_any

    path = directory_of(options.run, options.runs_dir, "status")
    state = state_of(path, queue_if_any())
    goal = f" of {state.max_steps}" if state.max_steps else ""
    print(f"run {path}: {state.state}{f' ({state.reason})' if state.reason else ''}")
    print(f"  step {state.step}{goal}, checkpoint of step {state.saved}")
    if state.eta_seconds is not None and state.state != "done":
        print(f"  {format_duration(state.eta_seconds)} of training left, without waiting in the queue")
    if state.job:
        print(f"  job {state.job} {state.nodes}")
    for start in state.starts:
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(start.time))
        running = state.state == "running" and start is state.starts[-1]
        end = f"{start.end}: {start.why}" if start.end else "runs" if running else "ended by SLURM"
        print(f"  start {start.number} at {when} on {','.join(start.nodes)} from step {start.before}: {end}")
    for node in state.excluded:
        print(f"  without {node}: see {path / 'slurm' / 'excluded.json'}")
    for wish in ("stop", "save", "cancel"):
        if (request := Control(path).asked(wish)) is not None:
            print(f"  asked to {wish}: {request.why}")
    if state.starts:
        log = start_directory(path, state.starts[-1].number) / "rank-0.log"
        print("".join(f"  | {line}\n" for line in tail(log, 5)), end="")
    return 0
