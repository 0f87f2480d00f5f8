"""Dataset → tokenizer → checkpoint → evaluation as artifacts of Weights & Biases.

Only descriptions are uploaded (a manifest, digests, measures), never shards or weights: digests identify the
bytes, and the metadata says where they are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distllm.data.mirror import dataset_directory
from distllm.fsio import atomic_write_json
from distllm.observe.tracked import TrackedRun

_log = logging.getLogger(__name__)


@contextmanager
def _at_best() -> Iterator[None]:
    """Warn of a server that refuses artifacts, by quota or permission: it may take the rest."""
    import wandb

    try:
        yield
    except (ValueError, wandb.Error) as error:  # a ValueError is an answer of another form than expected
        _log.warning(
            "Weights & Biases takes no artifact (%s: %s); it shows the rest", type(error).__name__, error
        )


def log_inputs(wandb_run: Any, run: TrackedRun) -> None:
    """Name the dataset and its tokenizer as what the run uses; warn where that is refused."""
    if run.dataset:
        with _at_best():
            _log_inputs(wandb_run, run)


def _log_inputs(wandb_run: Any, run: TrackedRun) -> None:
    directory = dataset_directory(run.config.data)
    dataset = _artifact(
        f"dataset-{run.dataset[:12]}", "dataset", {"digest": run.dataset, "path": str(directory)}
    )
    _add_if_there(dataset, directory / "manifest.json")
    tokenizer = _artifact(
        f"tokenizer-{run.tokenizer[:12]}",
        "tokenizer",
        {"fingerprint": run.tokenizer, "dataset": run.dataset},
    )
    _add_if_there(tokenizer, directory / "tokenizer.json")
    for artifact in (dataset, tokenizer):
        _use(wandb_run, artifact)


def log_outputs(wandb_run: Any, run: TrackedRun, step: int | None, measures: Mapping[str, float]) -> None:
    """Name the newest checkpoint and evaluation as what the attempt produced; warn where that is refused."""
    if step is not None:
        with _at_best():
            _log_outputs(wandb_run, run, step, measures)


def _log_outputs(wandb_run: Any, run: TrackedRun, step: int, measures: Mapping[str, float]) -> None:
    directory = run.directory / "checkpoints" / f"step-{step:09d}"
    parents = {"step": step, "dataset": run.dataset, "tokenizer": run.tokenizer}
    checkpoint = _artifact(f"{run.run_id}-checkpoint", "model", {**parents, "path": str(directory)})
    _add_if_there(checkpoint, directory / "manifest.json")
    wandb_run.log_artifact(checkpoint, aliases=["latest", f"step-{step}"])
    if measures:
        summary = run.directory / "wandb" / "evaluation.json"
        atomic_write_json(summary, dict(measures))
        evaluation = _artifact(
            f"{run.run_id}-evaluation",
            "evaluation",
            {**parents, "checkpoint": f"{run.run_id}-checkpoint:step-{step}"},
        )
        evaluation.add_file(str(summary), name="evaluation.json")
        wandb_run.log_artifact(evaluation, aliases=["latest", f"step-{step}"])


def _artifact(name: str, kind: str, metadata: dict[str, Any]) -> Any:
    import wandb

    return wandb.Artifact(name, kind, metadata=metadata)


def _add_if_there(artifact: Any, path: Path) -> None:
    if path.is_file():
        artifact.add_file(str(path))


def _use(wandb_run: Any, artifact: Any) -> None:
    """Declare an input of the run.

    The public method first asks the server, which an offline run cannot. This is the method it calls after
    that: it records the use, which the later upload completes.
    """
    wandb_run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
