"""Everything about a run's progress that must survive a kill, besides weights and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from distllm.errors import CheckpointError


@dataclass
class TrainState:
    """The progress of a run, as plain numbers. The data position and the learning rate follow from it.

    Attributes:
        step: optimizer steps taken or skipped.
        samples: position in the global order where the next step begins.
        tokens: loss targets consumed; the learning rate is a function of it.
        trained_samples: samples whose loss changed the weights, as seen in the batches.
        skipped_samples: samples of skipped steps.
        damaged_samples: samples without loss, because a block of their shard is damaged.
        skipped_steps: steps whose update was dropped because the guard refused them.
        skips_in_a_row: how many of the latest steps were skipped.
        streak_samples: ``samples`` before the first of those steps.
        rewinds: times the run went back to a checkpoint.
        excluded: ranges [first, stop) of the global order that a rewind excluded.
        agreed_step: latest step after which the weights of all ranks were compared and equal.
        recent_losses: losses of the latest finite steps, oldest first, in nats per token.
        recent_grad_norms: their gradient norms.
        chain: hash over all steps so far; see `distllm.train.chain`.
        weights_fingerprint: fingerprint of the weights at this step, if they were compared; else empty.
        seconds: time spent in steps, over all attempts.
        best_metric: lowest value so far of the metric of early stopping; None until there is one.
        evaluations_since_best: evaluations since then.
        evaluated_step: step after which the latest evaluation was made; -1 before the first.
        epsilon: privacy loss of a private run so far, at its delta; None for other runs.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    trained_samples: int = 0
    skipped_samples: int = 0
    damaged_samples: int = 0
    skipped_steps: int = 0
    skips_in_a_row: int = 0
    streak_samples: int = 0
    rewinds: int = 0
    excluded: list[list[int]] = field(default_factory=list)
    agreed_step: int = 0
    recent_losses: list[float] = field(default_factory=list)
    recent_grad_norms: list[float] = field(default_factory=list)
    chain: str = ""
    weights_fingerprint: str = ""
    seconds: float = 0.0
    best_metric: float | None = None
    evaluations_since_best: int = 0
    evaluated_step: int = -1
    epsilon: float | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the state as plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> TrainState:
        """Rebuild a state from a checkpoint; fields that an older version did not have get their default.

        Raises:
            CheckpointError: the position of the run is missing, which has no sensible default.
        """
        if missing := [name for name in ("step", "samples", "tokens") if name not in values]:
            raise CheckpointError(
                f"the train state does not say {', '.join(missing)}",
                remedy="resume from another checkpoint",
            )
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        state = cls(**known)  # type: ignore[arg-type]  # JSON
        if "trained_samples" not in values and state.step:
            # Written before samples were counted: all steps are of the same size, and none was damaged.
            of_a_step = (state.samples - state.left_out()) // state.step
            state.skipped_samples = state.skipped_steps * of_a_step
            state.trained_samples = state.step * of_a_step - state.skipped_samples
        if "evaluated_step" not in values:
            state.evaluated_step = state.step  # evaluations could not be interrupted then
        return state

    def restore(self, values: Mapping[str, object]) -> None:
        """Replace the values of this object, which other objects refer to, by those of a checkpoint."""
        for item in fields(restored := TrainState.from_dict(values)):
            setattr(self, item.name, getattr(restored, item.name))

    def count_samples(self, rows: int, damaged: int, *, skipped: bool) -> None:
        """Count the samples of a step, of which ``damaged`` had no loss."""
        self.damaged_samples += damaged
        if skipped:
            self.skipped_samples += rows - damaged
        else:
            self.trained_samples += rows - damaged

    def left_out(self) -> int:
        """Return how many excluded samples lie before the position where the next step begins."""
        position = count = 0
        for first, stop in sorted(self.excluded):
            until = min(stop, self.samples)
            count += max(0, until - max(first, position))
            position = max(position, until)
        return count

    def next_samples(self) -> int:
        """Return the position where the next step begins: after any excluded range that begins here."""
        position = self.samples
        for first, stop in sorted(self.excluded):
            if first <= position < stop:
                position = stop
        return position
