"""Accounting for every sample of a run: it was trained on, or it was left out for a known reason.

The run takes the samples of the global order from the first to where it ends. ``promised`` follows
from the number of steps and from what rewinds decided to leave out; what the other numbers count
was seen in the batches themselves, on all ranks. They live in the train state, so that a kill undoes
the count together with the training.
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
    """Samples of the global order, from its beginning to where the run stands.

    Attributes:
        promised: that the steps so far cover, and what was left out between them.
        seen: that came in batches: trained, skipped or damaged.
        trained: whose loss changed the weights.
        skipped: of steps whose update was dropped.
        excluded: that a rewind decided to leave out.
        damaged: without loss, because a block of their shard is damaged.
    """

    promised: int
    seen: int
    trained: int
    skipped: int
    excluded: int
    damaged: int

    @property
    def gap(self) -> int:
        """Promised samples that nothing explains; below 0 if some were taken twice."""
        return self.promised - self.trained - self.skipped - self.excluded - self.damaged

    def to_dict(self) -> dict[str, int]:
        """Return the counts, for the ledger."""
        return asdict(self)


def rows_of(batches: Sequence[Batch]) -> int:
    """Return the samples in one rank's micro-batches of a step."""
    return sum(batch.sample_ids_B.size for batch in batches)


def count_samples(state: TrainState, sizes: StepSizes) -> Samples:
    """Return what became of the samples up to where ``state`` stands."""
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
    """Refuse to call a run done that cannot say what became of its samples.

    Raises:
        TrainingError: a promised sample is neither trained on nor known to be left out, or the run
            stands elsewhere in the global order than it was promised to.
    """
    if samples.gap == 0 and state.samples == samples.promised:
        return
    raise TrainingError(
        f"{samples.gap} of {samples.promised} promised samples are unaccounted for: "
        f"{samples.trained} trained + {samples.skipped} skipped + {samples.excluded} excluded "
        f"+ {samples.damaged} damaged, "
        f"and the run stands at sample {state.samples}",
        where=f"the batches up to step {state.step}",
        remedy="the run is not done and its checkpoints stay; look at batches with distllm inspect, and "
        "report this as a fault of distllm",
    )
