"""What the health check of all nodes means: which of them are bad."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from distllm.cluster.health import MARK
from distllm.cluster.snapshot import Submission
from distllm.cluster.srun import health_command
from distllm.config.schema import Config
from distllm.units import format_bytes

_END_SECONDS = 10


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What one node found.

    Attributes:
        node: its name.
        problems: what is wrong with the node itself.
        together: what goes wrong between it and the others.
        figures: what it measured.
    """

    node: str
    problems: tuple[str, ...]
    together: tuple[str, ...]
    figures: dict[str, float]

    def __str__(self) -> str:
        wrong = [*self.problems, *self.together]
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
    command = health_command(submission, config, head, port)
    check = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        output, _ = check.communicate(timeout=config.cluster.health.timeout_seconds)
    except subprocess.TimeoutExpired:
        check.terminate()
        try:
            output, _ = check.communicate(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            check.kill()
            output, _ = check.communicate()
    return read_reports(output or "", nodes)


def read_reports(output: str, nodes: Sequence[str]) -> list[NodeReport]:
    """Read what the nodes printed; a node that printed nothing gets a report that says so."""
    found: dict[str, NodeReport] = {}
    for line in output.splitlines():
        _, mark, text = line.partition(MARK)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if mark:
                read = json.loads(text)
                found[read["node"]] = NodeReport(
                    read["node"], tuple(read["problems"]), tuple(read["together"]), dict(read["figures"])
                )
    silent = ("did not finish the health check",)
    return [found.get(node, NodeReport(node, silent, (), {})) for node in nodes]


def bad_nodes(reports: Sequence[NodeReport]) -> dict[str, str]:
    """Return the nodes that are to be left out, each with the reason.

    What goes wrong between nodes is blamed on a node whose own check failed, if there is one: the
    others only miss it. Without one it is blamed on those that complain, unless all but the first
    do: then it is the first that they do not reach.
    """
    own = {report.node: "; ".join(report.problems) for report in reports if report.problems}
    if own:
        return own
    complaints = {report.node: "; ".join(report.together) for report in reports if report.together}
    others = [report.node for report in reports[1:]]
    if len(others) > 1 and set(others) <= set(complaints):
        return {reports[0].node: f"no other node works with it: {complaints[others[0]]}"}
    return complaints
