"""The layout of the Weights & Biases dashboard, as code: sections, panels, axes.

It is built from the names that are logged (`distllm.observe.names`), so that a renamed measure cannot leave
an empty panel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distllm.errors import MissingDependency
from distllm.observe.names import SAMPLES, STEP_AXIS, TOKEN_AXIS


@dataclass(frozen=True, slots=True)
class Panel:
    """One line plot.

    Attributes:
        title: title of the plot.
        measures: names that are logged; a name that ends in ``*`` stands for all names with this prefix.
        axis: the horizontal axis.
        log: whether the vertical scale is logarithmic.
    """

    title: str
    measures: tuple[str, ...]
    axis: str = STEP_AXIS
    log: bool = False

    @property
    def pattern(self) -> str | None:
        """A regular expression for the measures, if their names depend on the run; else None."""
        if not any(name.endswith("*") for name in self.measures):
            return None
        return "|".join(
            f"^{re.escape(name.removesuffix('*'))}" + ".*" * name.endswith("*") for name in self.measures
        )


def layout(task: str) -> Mapping[str, Sequence[Panel]]:
    """Return the sections of the dashboard for runs of a task, the most important ones first."""
    evaluation = f"eval/{task}"
    return {
        "Objective": (
            Panel("Loss", ("train/loss", f"{evaluation}/loss"), TOKEN_AXIS),
            Panel("Perplexity", ("train/perplexity", f"{evaluation}/perplexity"), TOKEN_AXIS, log=True),
            Panel("Bits per byte", (f"{evaluation}/bits_per_byte",), TOKEN_AXIS),
            Panel("Validation loss by source", (f"{evaluation}/sources/*",), TOKEN_AXIS),
            Panel("Learning rate", ("train/lr",), TOKEN_AXIS),
            Panel("Gradient norm", ("train/grad_norm",), TOKEN_AXIS, log=True),
        ),
        "Speed": (
            Panel("Tokens per second", ("perf/tokens_per_second",)),
            Panel("MFU", ("perf/mfu",)),
            Panel("Waiting for data, overhead", ("data/wait_fraction", "perf/overhead_fraction")),
            Panel("Time left", ("perf/eta_seconds",)),
            Panel("Evaluation, seconds", (f"{evaluation}/seconds",), TOKEN_AXIS),
        ),
        "Reliability": (
            Panel("Goodput, ETTR", ("reliability/goodput", "reliability/ettr")),
            Panel("Attempts, restarts, rewinds", tuple(f"reliability/{n}" for n in _COUNTED)),
            Panel("Skipped and lost steps", ("reliability/skipped_steps", "reliability/lost_steps")),
            Panel("Mean time to failure", ("reliability/mttf_seconds",)),
            Panel("Damaged samples", ("data/damaged_samples",)),
        ),
        "Privacy": (
            Panel("Exposure of canaries, bits", (f"{evaluation}/exposure/*",), TOKEN_AXIS),
            Panel("Epsilon", ("privacy/epsilon", "privacy/epsilon_poisson")),
        ),
        "Machine": (Panel("Memory of rank 0", ("sys/memory_bytes",)),),
    }


_COUNTED = ("attempt", "restarts", "rewinds")


def workspace(entity: str, project: str, task: str) -> Any:
    """Return the layout as a workspace of ``wandb-workspaces``; its ``save()`` puts it on the server.

    Raises:
        MissingDependency: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as reports
        from wandb_workspaces import workspaces
    except ImportError as error:
        raise MissingDependency(
            "the layout is built with wandb-workspaces, which is not installed",
            where="distllm dashboard",
            remedy="pip install 'distllm[loggers]'",
        ) from error
    sections = [
        workspaces.Section(
            name=name,
            is_open=True,
            panels=[
                reports.LinePlot(
                    title=panel.title,
                    x=panel.axis,
                    y=[] if panel.pattern else list(panel.measures),
                    metric_regex=panel.pattern,
                    log_y=panel.log,
                )
                for panel in panels
            ],
        )
        for name, panels in layout(task).items()
    ]
    samples = workspaces.Section(
        name="Samples", is_open=True, panels=[reports.WeavePanelSummaryTable(table_name=SAMPLES)]
    )
    return workspaces.Workspace(
        entity=entity, project=project, name=f"distllm {task}", sections=[*sections, samples]
    )
