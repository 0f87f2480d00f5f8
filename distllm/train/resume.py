"""Whether a run may resume from a checkpoint: changes that would make it another experiment are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distllm.checkpoint.load import Found
from distllm.config.diff import Change, changes
from distllm.config.resolve import Resolved
from distllm.config.schema import Config
from distllm.data.manifest import Manifest
from distllm.data.mixture import plan_digest
from distllm.data.stream import StepStream
from distllm.errors import CheckpointError, ConfigError
from distllm.redact import redacted
from distllm.train.run_directory import RunDirectory


def check_resume(
    found: Found | None,
    resolved: Resolved,
    directory: RunDirectory,
    manifest: Manifest,
    stream: StepStream,
    *,
    allow_schedule: bool,
) -> list[str]:
    """Decide whether the run may continue from a checkpoint; return notes for the user.

    Args:
        found: the newest valid checkpoint, if there is one.
        resolved: the current configuration.
        directory: the run directory.
        manifest: manifest of the current training data.
        stream: the current order of samples.
        allow_schedule: whether keys that change the course of the optimisation may differ.

    Raises:
        ConfigError: the configuration, the dataset or the order contradicts the checkpoint.
        CheckpointError: a checkpoint is required and there is none.
    """
    policy = resolved.config.checkpoint.resume
    if found is None:
        if policy == "must":
            raise CheckpointError(
                "there is no checkpoint to resume from",
                where=str(directory.checkpoints),
                remedy="checkpoint.resume=auto starts from scratch; or check name and runs_dir",
            )
        return []
    if policy == "never":
        raise ConfigError(
            f"the run directory holds a checkpoint of step {found.step}",
            where=str(directory.path),
            remedy="choose another name=..., or checkpoint.resume=auto to continue it",
        )
    before: Any = found.facts["config"]
    notes = check_configuration(before, resolved.config, directory.path, allow_schedule=allow_schedule)
    notes += _check_dataset(found.facts["dataset"], manifest, resolved.config.data.out)
    _check_plan(found, resolved, stream)
    damaged = [f"set aside a damaged checkpoint: {path} ({reason})" for path, reason in found.set_aside]
    origin = f"resuming from step {found.step}, the newest checkpoint with correct digests: {found.path}"
    return [*damaged, origin, *notes]


def check_configuration(
    before: Mapping[str, Any], after: Config, where: Path, *, allow_schedule: bool
) -> list[str]:
    """Compare the configuration of the checkpoint with the current one.

    Returns:
        One line for each change that is allowed.

    Raises:
        ConfigError: a key has changed that makes it another experiment, or one that changes the course of
            the optimisation without permission.
    """
    found = changes(before, redacted(asdict(after)))
    identity = [change for change in found if change.on_resume == "identity"]
    if identity:
        raise ConfigError(
            f"this run directory belongs to another experiment: {_listed(identity)}",
            where=str(where),
            remedy="undo the change, or choose another name=...",
        )
    schedule = [change for change in found if change.on_resume == "schedule"]
    if schedule and not allow_schedule:
        raise ConfigError(
            f"the course of the optimisation would change in the middle of the run: {_listed(schedule)}",
            where=str(where),
            remedy="undo the change; or allow it on purpose: the same command with --allow; "
            "or choose another name=...",
        )
    return [f"{change.on_resume} change since the checkpoint: {change}" for change in found]


def _listed(found: list[Change]) -> str:
    return "; ".join(map(str, found))


def _check_dataset(before: str, manifest: Manifest, out: str) -> list[str]:
    """Refuse a dataset that does not follow from the one with digest ``before``; return notes about it."""
    if not manifest.follows(before):
        raise ConfigError(
            f"the dataset changed: {manifest.digest} instead of {before}",
            where=f"data.out={out}",
            remedy="restore the dataset the run was trained on, or choose another name=...",
        )
    if manifest.digest == before:
        return []
    return [
        f"the dataset follows {before}, the run's: samples keep their positions, forgotten ones have no loss"
    ]


def _check_plan(found: Found, resolved: Resolved, stream: StepStream) -> None:
    """Refuse an order that differs from the checkpoint's up to its position; later samples may differ."""
    samples = found.train_state["samples"]
    if "order" not in found.facts:
        raise CheckpointError(
            "the checkpoint does not record the order of its samples: an older version wrote it",
            where=str(found.path),
            remedy="finish the run with the version that began it, or export it and start from its weights",
        )
    if found.facts["order"] != plan_digest(resolved.config, stream.order, samples):
        raise ConfigError(
            f"the mixture differs within the {samples} samples that the run has already seen",
            where="mixture",
            remedy=f"restore mixture and data.sources as they were up to step {found.step}: only what "
            "begins later may change; or choose another name=...",
        )
