"""`distllm why`: why a run ended, according to the logs of all its ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distllm.commands.arguments import parse_options
from distllm.commands.verbs import Options, directory_of

if TYPE_CHECKING:
    from distllm.cluster.diagnose import Finding


def run(words: Sequence[str]) -> int:
    """Print how the last starts ended, and the earliest error over all ranks of the last one."""
    options = parse_options("why", Options, words)
    from distllm.cluster.batch import start_directory
    from distllm.cluster.diagnose import first_error
    from distllm.cluster.preparations import is_preparation
    from distllm.cluster.snapshot import submissions_of
    from distllm.cluster.state import state_of
    from distllm.commands.jobs import queue_if_any
    from distllm.commands.status import describe_preparation, end_of

    path = directory_of(options.run, options.runs_dir, "why")
    if is_preparation(path):
        print("\n".join(describe_preparation(path)))
        return _print_finding(first_error(submissions_of(path.absolute())[-1], "job-*.log"), "task")
    state = state_of(path, queue_if_any([path]))
    print(f"{path}: {state.state} at step {state.step}")
    for start in state.starts[-3:]:
        print(f"start {start.number} on {','.join(start.nodes)}: {end_of(path, state, start)}")
    if state.state == "given up":
        print(f"given up: {state.starts[-1].given_up}")
    if not state.starts:
        print("it was not started by SLURM; see its events with distllm ledger")
        return 0
    finding = first_error(start_directory(path, state.starts[-1].number))
    if finding is not None and state.starts[-1].end in (None, "done", "again"):
        print("a rank logged an error, but it is not the reason why the last start ended:")
    return _print_finding(finding, "rank")


def _print_finding(finding: Finding | None, who: str) -> int:
    """Print the earliest error of the ranks of a start, or of the tasks of a preparation."""
    if finding is None:
        print(f"no {who} has logged an error")
        return 0
    print(f"first error, on {who} {finding.rank}: {finding.cause}")
    print("\n".join(f"  | {line}" for line in finding.excerpt.splitlines()))
    print(f"  log:    {finding.log}\n  remedy: {finding.remedy}")
    return 0
