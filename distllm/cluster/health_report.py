"""What the health check of all nodes means: which of them are bad."""

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
    """What one node found.

    Attributes:
        node: its name.
        problems: what is wrong with the node itself.
        together: what goes wrong between it and the others.
        figures: what it measured.
        shared: what is wrong with what all nodes have in common.
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
    mark = marks / str(time.time_ns())  # a name that no node has looked for before, and so none remembers
    mark.touch()
    try:
        seeing = _run(visible_command(config, mark), seconds).split()
    finally:
        mark.unlink()
    output = _run(health_command(submission, config, head, port), seconds)
    blind = [node for node in nodes if node not in seeing] if seeing else []
    return read_reports(output, nodes, blind=blind, directory=submission.run_dir)


def _run(command: Sequence[str], seconds: float) -> str:
    """Return what a command printed within so many seconds."""
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
        output: of all nodes.
        nodes: those of the job.
        blind: those that do not see what the first one wrote into ``directory``.
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
    """Return what is wrong with all nodes at once, and so with none of them; None if that is not so.

    The disk of the run directory is common, also to the nodes that the job does not have.
    """
    if reports and all(report.shared for report in reports):
        return "; ".join(reports[0].shared)
    bad = bad_nodes(reports)
    if len(reports) > 1 and all(report.node in bad for report in reports):
        return "every node of the job fails: " + "; ".join(f"{node}: {why}" for node, why in bad.items())
    return None


def bad_nodes(reports: Sequence[NodeReport]) -> dict[str, str]:
    """Return the nodes that are to be left out, each with the reason.

    What goes wrong between nodes is blamed on a node whose own check failed, if there is one: the
    others only miss it. Without one it is blamed on those that complain, unless all but the first
    do: then it is the first that they do not reach.
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
        return {reports[0].node: f"no other node works with it: {complaints[others[0]]}"}
    return complaints
