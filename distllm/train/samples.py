"""Accounting for every sample of a run: it was trained on, or left out for a known reason.

A run takes the samples of the global order from the first to the position where it ends. ``promised`` follows
from the number of steps and from what rewinds excluded; the other numbers were counted in the batches
themselves, on all ranks. They are part of the train state, so that resuming from a checkpoint also restores
the counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from distllm.config.steps import StepSizes
from distllm.data.batch import Batch
from distllm.errors import TrainingError
from distllm.train.state import TrainState


@dataclass(frozen=True, slots=True)
class Samples:
    """Numbers of samples of the global order, up to the position of the run.

    Attributes:
        promised: samples of the steps so far, and those that were excluded between them.
        seen: samples that came in batches: trained, skipped or damaged.
        trained: samples whose loss changed the weights.
        skipped: samples of steps whose update was dropped.
        excluded: samples that a rewind excluded.
        damaged: samples without loss, because a block of their shard is damaged.
    """

    promised: int
    seen: int
    trained: int
    skipped: int
    excluded: int
    damaged: int

    @property
    def gap(self) -> int:
        """Promised samples that are unaccounted for; below 0 if some were taken twice."""
        return self.promised - self.trained - self.skipped - self.excluded - self.damaged

    def to_dict(self) -> dict[str, int]:
        """Return the counts, for the ledger."""
        return asdict(self)


def rows_of(batches: Sequence[Batch]) -> int:
    """Return the samples in one rank's micro-batches of a step."""
    return sum(batch.sample_ids_B.size for batch in batches)


def count_samples(state: TrainState, sizes: StepSizes) -> Samples:
    """Return what happened to the samples up to the position of ``state``."""
    excluded = state.left_out()
    return Samples(
        promised=sizes.before(state.step) + excluded,
        seen=state.trained_samples + state.skipped_samples + state.damaged_samples,
        trained=state.trained_samples,
        skipped=state.skipped_samples,
        excluded=excluded,
        damaged=state.damaged_samples,
    )


def require_complete(samples: Samples, state: TrainState) -> None:
    """Check that a run that is about to be recorded as done accounts for all of its samples.

    Raises:
        TrainingError: a promised sample was neither trained on nor left out for a known reason, or the run is
            at another position of the global order than promised.
    """
    if samples.gap == 0 and state.samples == samples.promised:
        return
    raise TrainingError(
        f"{samples.gap} of {samples.promised} promised samples are unaccounted for: "
        f"{samples.trained} trained + {samples.skipped} skipped + {samples.excluded} excluded "
        f"+ {samples.damaged} damaged, "
        f"and the run is at sample {state.samples}",
        where=f"the batches up to step {state.step}",
        remedy="this is a bug in distllm: please report it; the checkpoints are kept, and distllm inspect "
        "shows batches",
    )
