"""Loading a trained model out of a run's checkpoints, in one process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distllm.checkpoint.load import find_checkpoint, read_weights
from distllm.config.resolve import Resolved
from distllm.data.mirror import dataset_directory
from distllm.data.tokenizer import Tokenizer
from distllm.errors import CheckpointError
from distllm.models.heads import head_of
from distllm.models.init import Model, bare_model


@dataclass(frozen=True, slots=True)
class Trained:
    """A model in evaluation mode, its tokenizer, and the facts of its training."""

    model: Model
    tokenizer: Tokenizer
    step: int
    facts: dict[str, Any]


def load_trained(checkpoints: Path, resolved: Resolved, step: int | None = None) -> Trained:
    """Load the newest verified checkpoint, or that of ``step``, on the CPU in fp32.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    found = find_checkpoint(checkpoints, quarantine=False, step=step)
    if found is None:
        raise CheckpointError(
            "the run has no checkpoint" if step is None else f"the run has no checkpoint of step {step}",
            where=str(checkpoints),
            remedy="train it first, or choose one of: "
            + ", ".join(sorted(path.name for path in checkpoints.glob("step-*"))),
        )
    model = bare_model(resolved.shape, head=head_of(resolved.config.task.name))
    read_weights(found, model)
    facts = {**found.facts, **found.train_state, "step": found.step}
    return Trained(model.eval(), Tokenizer.load(dataset_directory(resolved.config.data)), found.step, facts)
