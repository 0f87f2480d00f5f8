"""When state is saved, where, for how long it is kept, and how a run resumes from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distllm.config.options import option


@dataclass(frozen=True)
class CheckpointConfig:
    """When state is saved, what of it is kept, and how a run resumes."""

    dir: str | None = option(
        None,
        "where checkpoints go, below it in NAME/: a directory, or a URL such as s3://bucket/runs to which "
        "each is copied; null: only the run directory",
    )
    every_steps: int = option(100, "steps between checkpoints; the last step is always saved", minimum=1)
    mttf_hours: float | None = option(
        None,
        "mean time to failure of the whole job, from which (and from measured costs) the steps between "
        "checkpoints are derived, at most every_steps; null: always every_steps",
        minimum=1e-4,
    )
    ephemeral_every_steps: int | None = option(
        None,
        "steps between further checkpoints of which only the newest is kept, until an ordinary one follows; "
        "null: none",
        minimum=1,
    )
    background: bool = option(
        True, "write in the background; training waits only for the copy to main memory"
    )
    max_failures: int = option(
        3, "failed saves in a row, say for lack of space, that end the run; its last save must succeed",
        minimum=1,
    )  # fmt: skip
    keep_last: int = option(3, "checkpoints kept, newest first", minimum=1)
    keep_every_steps: int | None = option(
        None, "keep the first checkpoint of every interval of this many steps for good; null: none", minimum=1
    )
    keep_best: int = option(
        0, "checkpoints kept because their validation loss is the lowest; needs an evaluation at their step",
        minimum=0,
    )  # fmt: skip
    resume: Literal["auto", "must", "never"] = option(
        "auto",
        "auto: resume if there is a checkpoint; must: refuse to start from scratch; never: refuse to resume",
    )
