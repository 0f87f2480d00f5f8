"""Which steps are applied: not those with a loss or gradient that is not finite, nor spikes.

A step is judged before its update by two numbers that all ranks share: the loss of the global batch and
the norm of its gradient. Each is compared with the median of the few values before it, and with that of the
very latest ones, so that growth over many steps is not taken for a spike, however smooth the curve was
before. The noise is estimated from the differences of neighbours in a longer window, which the decrease of
the curve does not widen (von Neumann et al. 1941, doi:10.1214/aoms/1177731746), by their median, which a
few outliers do not move (Leys et al. 2013, doi:10.1016/j.jesp.2013.03.013). Norms are compared by their
logarithms, because they vary by factors. Values that are not finite never enter the window: one NaN would
disable the rule for the length of the window.

A refused step is skipped: weights, moments and update count stay unchanged. After too many skipped steps in a
row the run must go back to a checkpoint (`distllm.train.rewind`). If it cannot, finite steps are applied from
then on: training without a guard does the same, and mostly recovers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Literal

from distllm.config.schema_guard import GuardConfig
from distllm.train.state import TrainState

Reason = Literal["non_finite", "loss_spike", "grad_norm_spike"]

WARMUP = 16  # with fewer values nothing is a spike; so many of the latest values make the level
# Standard deviations of normal noise in the median absolute difference of two of its values.
_NORMAL = 1.4826 / math.sqrt(2)
# A smooth curve has almost no noise, so that any rise would be many deviations. With these lower bounds a
# spike is, at the default threshold, at least 16 % above the level for a loss, and 3.3 times for a norm.
_LEAST_LOSS_NOISE = 0.02  # share of the level
_LEAST_NORM_NOISE = 0.15  # of the logarithm


class Guard:
    """Judges steps.

    Args:
        config: thresholds.
        state: the run's progress; it holds the windows and the streak of skipped steps, so that a resumed
            run judges like an uninterrupted one.
    """

    def __init__(self, config: GuardConfig, state: TrainState) -> None:
        self._config = config
        self._state = state

    def doubt(self, loss: float, grad_norm: float) -> Reason | None:
        """Return why a step with this mean loss (nats) and gradient norm must be skipped; None: apply it."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return "non_finite"
        threshold = self._config.spike_threshold
        if threshold == 0:
            return None
        losses, norms = self._state.recent_losses, self._state.recent_grad_norms
        # Spikes stay in the windows, so the level is a median of enough values that a streak of spikes within
        # the patience cannot become the level.
        latest = 3 * self._config.spike_patience
        if deviations(loss, losses, latest, least_share=_LEAST_LOSS_NOISE) > threshold:
            return "loss_spike"
        logarithms = [_log(norm) for norm in norms]
        if deviations(_log(grad_norm), logarithms, latest, least=_LEAST_NORM_NOISE) > threshold:
            return "grad_norm_spike"
        return None

    def record(self, reason: Reason | None, loss: float, grad_norm: float) -> bool:
        """Count a judged step, before the state advances; return whether the run must go back."""
        state, config = self._state, self._config
        if reason != "non_finite":
            for window, value in ((state.recent_losses, loss), (state.recent_grad_norms, grad_norm)):
                window.append(value)
                del window[: -config.window]
        if reason is None:
            state.skips_in_a_row = 0
            return False
        if state.skips_in_a_row == 0:
            state.streak_samples = state.samples
        state.skipped_steps += 1
        state.skips_in_a_row += 1
        patience = config.skip_budget if reason == "non_finite" else config.spike_patience
        return state.skips_in_a_row >= patience

    def accept_level(self) -> None:
        """Forget the level so far: nothing is a spike until the next steps have set a new one."""
        self._state.recent_losses.clear()
        self._state.recent_grad_norms.clear()
        self._state.skips_in_a_row = 0


def deviations(
    value: float,
    window: Sequence[float],
    latest: int = WARMUP,
    *,
    least_share: float = 0.0,
    least: float = 0.0,
) -> float:
    """Return how many standard deviations of the noise ``value`` lies above the latest of ``window``.

    Args:
        value: the new value.
        window: earlier values, oldest first, all finite; with fewer than `WARMUP` values the result is 0.
        latest: how many of the latest values make the level of a growing curve; at most `WARMUP`.
        least_share: lower bound of the noise, as a share of the level.
        least: lower bound of the noise.
    """
    if len(window) < WARMUP:
        return 0.0
    level = max(median(window[-WARMUP:]), median(window[-min(latest, WARMUP) :]))
    noise = _NORMAL * median([abs(after - before) for before, after in pairwise(window)])
    noise = max(noise, least_share * abs(level), least)
    return (value - level) / noise if noise > 0 else 0.0


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-30))
