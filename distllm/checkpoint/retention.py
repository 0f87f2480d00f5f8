"""Which checkpoints are kept, and why. Imports no torch.

A checkpoint is kept if any rule applies:

- *last*: it is among the newest ``last`` ordinary ones;
- *every*: it is the first ordinary one at or after a multiple of ``every_steps``;
- *best*: it was evaluated at its own step, and its validation loss is among the ``best`` lowest;
- *newest*: it is ephemeral, and nothing newer exists;
- *whole*: none of those that the other rules keep can be verified, and it is the newest that can.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distllm.checkpoint.commit import remove
from distllm.checkpoint.format import STATE, list_checkpoints, step_of, verify
from distllm.config.schema_checkpoint import CheckpointConfig
from distllm.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Retention:
    """How many checkpoints each rule keeps; ``every_steps`` None and ``best`` 0 turn a rule off."""

    last: int
    every_steps: int | None = None
    best: int = 0

    @classmethod
    def from_config(cls, config: CheckpointConfig) -> Retention:
        """The rules that a configuration asks for."""
        return cls(config.keep_last, config.keep_every_steps, config.keep_best)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a checkpoint says about itself, unverified.

    Attributes:
        path: its directory.
        step: training steps taken.
        ephemeral: kept only while it is the newest.
        valid_loss: validation loss measured at this step, in nats per token; None if there is none.
    """

    path: Path
    step: int
    ephemeral: bool = False
    valid_loss: float | None = None


def summarise(directory: Path) -> list[Summary]:
    """Describe every checkpoint in ``directory``, newest first; a damaged one counts as ordinary."""
    return [_summary(path) for path in list_checkpoints(directory)]


def _summary(path: Path) -> Summary:
    try:
        return summary_of(path, (path / STATE).read_bytes())
    except OSError:
        return Summary(path, step_of(path))  # `verify` reports what is wrong


def summary_of(path: Path, state: bytes) -> Summary:
    """Describe the checkpoint ``path`` by its state file; invalid content is ignored."""
    step = step_of(path)
    try:
        content: dict[str, Any] = json.loads(state)
        facts = content.get("facts", {})
        loss = facts.get("valid_loss") if facts.get("valid_step") == step else None
        return Summary(
            path,
            step,
            ephemeral=content.get("ephemeral") is True,
            valid_loss=float(loss) if loss is not None and math.isfinite(loss) else None,
        )
    except (ValueError, AttributeError, TypeError):
        return Summary(path, step)


def kept(checkpoints: Sequence[Summary], retention: Retention) -> dict[int, str]:
    """Return the steps of the checkpoints (given newest first) that are kept, each with its first rule."""
    ordinary = [item for item in checkpoints if not item.ephemeral]
    reasons = {item.step: "last" for item in ordinary[: retention.last]}
    if retention.every_steps:
        first_of = {item.step // retention.every_steps: item.step for item in ordinary}
        reasons = {first_of[part]: "every" for part in sorted(first_of) if part > 0} | reasons
    measured = [item for item in checkpoints if item.valid_loss is not None]
    measured.sort(key=lambda item: (item.valid_loss, item.step))
    reasons = {item.step: "best" for item in measured[: retention.best]} | reasons
    if checkpoints and checkpoints[0].ephemeral:
        reasons = {checkpoints[0].step: "newest"} | reasons
    return reasons


def prune(directory: Path, retention: Retention) -> list[Path]:
    """Remove the checkpoints that no rule keeps; return their paths.

    Before anything is removed, one of those that are kept is read back and verified; if none of them is
    valid, the newest valid one is kept as well.

    Raises:
        StorageError: a file cannot be removed.
    """
    doomed = doomed_of(directory, retention)
    for path in doomed:
        remove(path)
    return doomed


def doomed_of(directory: Path, retention: Retention) -> list[Path]:
    """Return what `prune` would remove, newest first, without touching it."""
    checkpoints = summarise(directory)
    reasons = kept(checkpoints, retention)
    doomed = [item.path for item in checkpoints if item.step not in reasons]
    if doomed and not any(_is_whole(item.path) for item in checkpoints if item.step in reasons):
        survivor = next((path for path in doomed if _is_whole(path)), None)
        doomed = [path for path in doomed if path != survivor]
    return doomed


def _is_whole(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError:
        return False
    return True
