"""Is there enough space for the checkpoints of a run? Checked before the first step and before each save.

Imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from distllm.checkpoint.retention import Retention
from distllm.errors import StorageError
from distllm.fsio import free_bytes
from distllm.units import format_bytes

BYTES_PER_PARAM = 12  # fp32 weight and two fp32 moments
_REMEDY = "free disk space, lower checkpoint.keep_last or keep_best, or point checkpoint.dir at another disk"
_OVERHEAD_BYTES = 1 << 17  # headers, state, manifest


def checkpoint_bytes(num_params: int, bytes_per_param: int = BYTES_PER_PARAM) -> int:
    """Return a slightly too high estimate of the size of a checkpoint, in bytes."""
    return num_params * bytes_per_param + _OVERHEAD_BYTES


def require_space(directory: Path, needed: int, what: str) -> None:
    """Check that ``needed`` bytes are free.

    Raises:
        StorageError: they are not.
    """
    free = free_bytes(directory)
    if free < needed:
        raise StorageError(
            f"no space left for {what}: it takes about {format_bytes(needed)}, {format_bytes(free)} are free",
            where=str(directory),
            remedy=_REMEDY,
        )


def check_space(
    directory: Path, one: int, retention: Retention, *, max_steps: int, ephemeral: bool
) -> str | None:
    """Compare the free space with the checkpoints that a run will keep at the same time, before it begins.

    Args:
        directory: the checkpoint directory; the space of checkpoints that are there counts as available.
        one: bytes of a checkpoint.
        retention: which checkpoints are kept.
        max_steps: length of the run.
        ephemeral: whether the run also writes ephemeral checkpoints.

    Returns:
        A warning if permanently kept checkpoints will fill the disk before the run ends; else None.

    Raises:
        StorageError: there is not enough space for the others plus one that is being written.
    """
    coming = retention.last + retention.best + ephemeral + 1
    for_good = max_steps // retention.every_steps if retention.every_steps else 0
    room = free_bytes(directory) + _held(directory)
    if room < coming * one:
        raise StorageError(
            f"no space for the checkpoints of this run: it needs {coming} of about {format_bytes(one)} "
            f"at the same time, there is space for {room // one}",
            where=str(directory),
            remedy=_REMEDY,
        )
    if room < (coming + for_good) * one:
        return (
            f"checkpoint.keep_every_steps keeps {for_good} checkpoints of about {format_bytes(one)} by the "
            f"end, and there is space for {room // one - coming}: raise it, or move some away in time"
        )
    return None


def _held(directory: Path) -> int:
    return sum(file.stat().st_size for file in Path(directory).glob("step-*/*") if file.is_file())
