"""Building the sinks of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from distllm.fsio import atomic_write_text
from distllm.observe.background import BackgroundSink
from distllm.observe.sinks import METRICS_FILE, JsonlSink, Sink, highest_steps
from distllm.observe.tracked import TrackedRun

SHOWN_FILE = "dashboards.txt"

_log = logging.getLogger(__name__)


def build_sinks(run: TrackedRun, total_steps: int) -> list[Sink]:
    """Return the sinks that ``config.logger`` asks for.

    ``metrics.jsonl`` and the console are written directly; a sink with its own library or server gets its own
    thread.

    Raises:
        StorageError: the run directory cannot be written.
    """
    logger = run.config.logger
    recorded = highest_steps(run.directory / METRICS_FILE)
    sinks: list[Sink] = [JsonlSink(run.directory, run.attempt)]
    report: Callable[[str], None] = _log.info
    if logger.console:
        from distllm.observe.console import ConsoleSink

        done = ("evaluate", "report", *(["export"] if run.is_exportable else []))
        console = ConsoleSink(total_steps, run=str(run.directory), when_done=done)
        sinks.append(console)
        report = partial(console.log_note, 0)
    chosen: dict[str, tuple[bool, Callable[[TrackedRun], Sink]]] = {
        "Weights & Biases": (logger.wandb != "disabled", partial(_wandb, report=report)),
        "TensorBoard": (logger.tensorboard, _tensorboard),
        "MLflow": (logger.mlflow is not None, _mlflow),
        "trackio": (logger.trackio, _trackio),
    }
    wanted = [(name, build) for name, (asked, build) in chosen.items() if asked]
    known = _shown_in(run.directory, [name for name, _ in wanted])
    for name, build in wanted:
        shown = replace(run, shown=recorded if name in known else {})
        directory = _store_of(logger.mlflow) if name == "MLflow" else run.directory
        sinks.append(BackgroundSink(name, partial(build, shown), directory=directory))
    return sinks


def _shown_in(run_dir: Path, names: Sequence[str]) -> frozenset[str]:
    """Return the dashboards that have earlier steps, and record that ``names`` will have later ones."""
    path = run_dir / SHOWN_FILE
    known = frozenset(path.read_text(encoding="utf-8").splitlines()) if path.exists() else frozenset()
    if not known.issuperset(names):
        atomic_write_text(path, "\n".join(sorted(known.union(names))) + "\n")
    return known


def _store_of(uri: str | None) -> Path | None:
    """Return the directory that MLflow writes itself; None if a server or a database does."""
    return Path(url2pathname(urlsplit(uri).path)) if uri is not None and uri.startswith("file:") else None


def _wandb(run: TrackedRun, report: Callable[[str], None]) -> Sink:
    from distllm.observe.wandb_sink import WandbSink

    return WandbSink(run, report)


def _tensorboard(run: TrackedRun) -> Sink:
    from distllm.observe.scalar_sinks import TensorBoardSink

    return TensorBoardSink(run)


def _mlflow(run: TrackedRun) -> Sink:
    from distllm.observe.scalar_sinks import MlflowSink

    return MlflowSink(run)


def _trackio(run: TrackedRun) -> Sink:
    from distllm.observe.scalar_sinks import TrackioSink

    return TrackioSink(run)
