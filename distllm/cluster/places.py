"""Checks before a job is queued: file systems, free space, secrets in job scripts. Nothing here raises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distllm.checkpoint.space import BYTES_PER_PARAM, checkpoint_bytes
from distllm.config.problems import Problems
from distllm.config.resolve import Resolved
from distllm.config.schema import Config
from distllm.fsio import free_bytes
from distllm.machine import filesystem_of
from distllm.redact import redact_text, redacted
from distllm.units import format_bytes

_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
_CHECKPOINTS_AT_ONCE = 2
"""The newest checkpoint, and the one that is being written."""


def check_shared(config: Config, run_dir: Path, problems: Problems) -> None:
    """Check that a job does not read or write files in the memory of this machine.

    Whether another file system is shared cannot be seen here: the health check of the job's nodes looks for a
    file that its first node has just written.
    """
    places = {"runs_dir": run_dir}
    if "://" not in config.data.out:
        places["data.out"] = Path(config.data.out)
    for key, place in places.items():
        kind = filesystem_of(place)
        problems.check(
            kind not in _IN_MEMORY,
            f"{place} is on {kind}, in the memory of this machine, where the nodes of a job cannot see it",
            keys=[key],
            remedy="choose a directory on a file system that all nodes share",
        )


def check_room(resolved: Resolved, run_dir: Path, problems: Problems) -> None:
    """Check that there is space for two checkpoints."""
    one = checkpoint_bytes(resolved.trainable_params, BYTES_PER_PARAM)
    elsewhere = resolved.config.checkpoint.dir
    place = Path(elsewhere).expanduser() if elsewhere and "://" not in elsewhere else run_dir
    needed, free = _CHECKPOINTS_AT_ONCE * one, free_bytes(place)
    problems.check(
        free >= needed,
        f"two checkpoints of this run take {format_bytes(needed)}, {format_bytes(free)} are free in {place}",
        keys=["runs_dir" if place == run_dir else "checkpoint.dir"],
        remedy="free space, or choose a directory on another disk",
    )


def check_secrets(config: Config, problems: Problems) -> None:
    """Check that no secret would be written to the job script, which others may read."""
    for where, shown in _secrets(config):
        problems.add(
            f"{shown} looks like a secret, and others can read job scripts (scontrol show job, sacct)",
            where=where,
            remedy="export it in the shell that submits: sbatch passes the environment on; "
            "or let cluster.setup read a file that only you can read",
        )


def _secrets(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the key of each value that looks like a secret, and the value without the secret."""
    cluster = config.cluster
    for name, value in cluster.env.items():
        if redacted({name: str(value)}) != {name: str(value)}:
            yield f"cluster.env.{name}", f"the value of {name}"
    lines = {
        "cluster.setup": cluster.setup,
        "cluster.slurm.options": cluster.slurm.options,
        "cluster.slurm.srun_options": cluster.slurm.srun_options,
        "cluster.slurm.comment": (cluster.slurm.comment or "",),
    }
    for key, texts in lines.items():
        for text in texts:
            if (shown := redact_text(text)) != text:
                yield key, repr(shown)
