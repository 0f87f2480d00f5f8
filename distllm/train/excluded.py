"""Which samples a step was trained on, when rewinds have excluded some from the global order.

An excluded range [first, stop) holds whole steps: the step that would have begun with ``first`` begins with
``stop``, and all later steps are shifted by the same amount.

Shapes: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distllm.checkpoint.format import newest_state
from distllm.config.steps import StepSizes

Ranges = Sequence[list[int]]


def excluded_samples(checkpoints: Path) -> Ranges:
    """Return the excluded ranges that the newest checkpoint of a run records."""
    newest = newest_state(checkpoints)
    ranges: Ranges = newest[1]["train_state"].get("excluded", []) if newest else []
    return ranges


def first_sample(step: int, sizes: StepSizes, excluded: Ranges) -> int:
    """Return the position in the global order at which ``step`` (from 1) begins."""
    place = sizes.before(step - 1)
    for first, stop in sorted(excluded):
        if first <= place:
            place += stop - first
    return place


def steps_of(sample_N: NDArray[np.int64], sizes: StepSizes, excluded: Ranges) -> NDArray[np.int64]:
    """Return the steps, ascending and each once, that trained on any of the samples at these positions."""
    kept_N = np.ones(len(sample_N), dtype=bool)
    left_out_N = np.zeros(len(sample_N), dtype=np.int64)
    for first, stop in excluded:
        kept_N &= (sample_N < first) | (sample_N >= stop)
        left_out_N += np.where(sample_N >= stop, stop - first, 0)
    step_N = sizes.steps_of((sample_N - left_out_N)[kept_N]) + 1
    return np.unique(step_N)
