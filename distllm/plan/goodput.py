"""What failures cost: the best checkpoint interval, the expected goodput, the time of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Goodput:
    """A run under failures.

    Attributes:
        mttf_seconds: mean time between failures of the whole job.
        save_seconds: what training loses to one checkpoint.
        interval_seconds: best time between checkpoints.
        fraction: share of the time in which steps are taken that count.
        failures: expected number in the run.
    """

    mttf_seconds: float
    save_seconds: float
    interval_seconds: float
    fraction: float
    failures: float


def young_daly(save_seconds: float, mttf_seconds: float) -> float:
    """Return the best time between checkpoints, sqrt(2 C M) (Young 1974, Daly 2006)."""
    return math.sqrt(2 * save_seconds * mttf_seconds)


def expected_goodput(
    *,
    nodes: int,
    node_mttf_seconds: float,
    save_seconds: float,
    restart_seconds: float,
    busy_seconds: float,
) -> Goodput:
    """Return what is left of a run that fails as often as its nodes do.

    Failures are a Poisson process. Each costs a restart and half an interval of lost steps; saving
    costs its share of every interval: first order of Daly (2006), the estimator of Kokolis et al.
    (2024).

    Args:
        nodes: machines; any one that fails ends the attempt.
        node_mttf_seconds: mean time between failures of one.
        save_seconds: what one checkpoint stops training for.
        restart_seconds: from a failure to the next step.
        busy_seconds: length of the run without failures and checkpoints.
    """
    mttf = node_mttf_seconds / nodes
    interval = min(young_daly(save_seconds, mttf), busy_seconds)
    saving = save_seconds / (interval + save_seconds)
    lost = (restart_seconds + interval / 2) / mttf
    # with lost time beyond the time to failure the run makes progress only by luck: exp(-x) is never 0
    fraction = (1 - saving) * (1 - lost if lost < 0.5 else 0.5 * math.exp(1 - 2 * lost))
    return Goodput(
        mttf_seconds=mttf,
        save_seconds=save_seconds,
        interval_seconds=interval,
        fraction=fraction,
        failures=busy_seconds / fraction / mttf,
    )
