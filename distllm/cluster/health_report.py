"""Running the health check on all nodes of a job, and deciding which of them are bad."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distllm.cluster.health import MARK
from distllm.cluster.history import HOME
from distllm.cluster.snapshot import Submission
from distllm.cluster.srun import health_command, visible_command
from distllm.config.schema import Config
from distllm.units import format_bytes

_END_SECONDS = 10
_MARKS = HOME / "seen"


@dataclass(frozen=True, slots=True)
class NodeReport:
    """The result of one node.

    Attributes:
        node: its name.
        problems: of the node itself.
        together: between it and other nodes.
        figures: what it measured.
        shared: of what all nodes have in common.
    """

    node: str
    problems: tuple[str, ...]
    together: tuple[str, ...]
    figures: dict[str, float]
    shared: tuple[str, ...] = ()

    def __str__(self) -> str:
        wrong = [*self.problems, *self.shared, *self.together]
        shown = [
            f"{name.removesuffix('_bytes_per_second')} {format_bytes(value)}/s"
            for name, value in self.figures.items()
            if name.endswith("_per_second")
        ]
        return (
            f"{self.node}: {'; '.join(wrong) if wrong else 'good'} ({', '.join(shown) or 'nothing measured'})"
        )


def check_nodes(
    submission: Submission, config: Config, nodes: Sequence[str], head: str, port: int
) -> list[NodeReport]:
    """Check every node of the job and return a report for each, in their order."""
    seconds = config.cluster.health.timeout_seconds
    marks = submission.run_dir / _MARKS
    marks.mkdir(exist_ok=True)
    mark = marks / str(time.time_ns())  # a new name: a node may have cached that an old one does not exist
    mark.touch()
    try:
        seeing = _run(visible_command(config, mark), seconds).split()
    finally:
        mark.unlink()
    output = _run(health_command(submission, config, head, port), seconds)
    blind = [node for node in nodes if node not in seeing] if seeing else []
    return read_reports(output, nodes, blind=blind, directory=submission.run_dir)


def _run(command: Sequence[str], seconds: float) -> str:
    """Return what a command printed within ``seconds``; one that takes longer is ended."""
    check = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        output, _ = check.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        check.terminate()
        try:
            output, _ = check.communicate(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            check.kill()
            output, _ = check.communicate()
    return output or ""


def read_reports(
    output: str, nodes: Sequence[str], *, blind: Sequence[str] = (), directory: Path | None = None
) -> list[NodeReport]:
    """Read what the nodes printed; a node that printed nothing gets a report that says so.

    Args:
        output: of all nodes together.
        nodes: the nodes of the job.
        blind: nodes that do not see a file that the first node wrote to ``directory``.
        directory: the run directory.
    """
    found: dict[str, NodeReport] = {}
    for line in output.splitlines():
        _, mark, text = line.partition(MARK)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if mark:
                read = json.loads(text)
                found[read["node"]] = NodeReport(
                    read["node"],
                    tuple(read["problems"]),
                    tuple(read["together"]),
                    dict(read["figures"]),
                    tuple(read["shared"]),
                )
    silent = ("did not finish the health check",)
    sees_not = (f"does not see {directory}, which must lie on a file system that all nodes share",)
    return [
        found.get(node, NodeReport(node, sees_not if node in blind else silent, (), {})) for node in nodes
    ]


def common_cause(reports: Sequence[NodeReport]) -> str | None:
    """Return a problem that all nodes have, which no single node is to blame for; None if there is none.

    Other nodes would not help either: the disk of the run directory, for example, is the same for all.
    """
    if reports and all(report.shared for report in reports):
        return "; ".join(reports[0].shared)
    bad = bad_nodes(reports)
    if len(reports) > 1 and all(report.node in bad for report in reports):
        return "every node of the job fails: " + "; ".join(f"{node}: {why}" for node, why in bad.items())
    return None


def bad_nodes(reports: Sequence[NodeReport]) -> dict[str, str]:
    """Return the nodes that should be excluded, each with the reason.

    Problems between nodes are blamed on a node whose own check failed, if there is one: the others only fail
    to work with it. Otherwise they are blamed on the nodes that report them, unless all nodes but the first
    do: then the first one is to blame, because none of them can work with it.
    """
    own = {
        report.node: "; ".join([*report.problems, *report.shared])
        for report in reports
        if report.problems or report.shared
    }
    if own:
        return own
    complaints = {report.node: "; ".join(report.together) for report in reports if report.together}
    others = [report.node for report in reports[1:]]
    if len(others) > 1 and set(others) <= set(complaints):
        return {reports[0].node: f"no other node can work with it: {complaints[others[0]]}"}
    return complaints
