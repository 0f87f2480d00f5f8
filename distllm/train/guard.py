"""What to do when a step's gradients are not finite: skip it, count it, and give up in time."""

from __future__ import annotations

from distllm.errors import TrainingError
from distllm.train.state import TrainState


def record_outcome(state: TrainState, *, skipped: bool, skip_budget: int) -> None:
    """Count a step as taken or skipped.

    Raises:
        TrainingError: more than ``skip_budget`` steps in a row were skipped: the run is not training.
    """
    if not skipped:
        state.skips_in_a_row = 0
        return
    state.skipped_steps += 1
    state.skips_in_a_row += 1
    if state.skips_in_a_row > skip_budget:
        raise TrainingError(
            f"gradients were not finite in {state.skips_in_a_row} steps in a row, up to step {state.step}",
            where="train.skip_budget",
            remedy="lower optim.lr or raise schedule.warmup_fraction; "
            f"see the data with: distllm inspect run=NAME step={state.step}",
        )
