"""Everything about a run's progress that must survive a kill, beside weights and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields


@dataclass
class TrainState:
    """Plain numbers: what was done so far. The data position and the learning rate follow from it.

    Attributes:
        step: optimizer steps taken or skipped.
        samples: samples consumed from the global order; the next step begins with this one.
        tokens: loss targets consumed; the learning rate is a function of it.
        skipped_steps: steps whose update was dropped because gradients were not finite.
        skips_in_a_row: how many of the latest steps were skipped.
        seconds: time spent in steps, over all attempts.
        first_valid_loss: validation loss before the first step, in nats per token; nan until known.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    skipped_steps: int = 0
    skips_in_a_row: int = 0
    seconds: float = 0.0
    first_valid_loss: float = float("nan")

    def to_dict(self) -> dict[str, object]:
        """Return the state as plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> TrainState:
        """Rebuild a state that a checkpoint holds."""
        return cls(**{item.name: values[item.name] for item in fields(cls)})  # type: ignore[arg-type]  # JSON
