"""A growth of the gradient norm is no spike, however smooth the curve was; a jump on it is one."""

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from distllm.config.schema import GuardConfig
from distllm.train.guard import WARMUP, Guard
from distllm.train.state import TrainState

LEVELS = st.floats(1e-6, 1e4)
TINY = st.sampled_from([0.0, 1e-9, 1e-3, 0.02])  # spread of the logarithm
FLAT = st.integers(WARMUP, 140)


def smooth(level, spread, steps, growth=0.0, flat=0, seed=0, **config):
    """A guard that has seen a flat stretch and then a growth by a constant factor; its doubts by step."""
    guard, noise, doubts = Guard(GuardConfig(**config), TrainState()), random.Random(seed), []
    for step in range(flat + steps):
        norm = level * math.exp(noise.gauss(0, spread) + growth * max(0, step - flat))
        doubts.append(guard.doubt(3.0, norm))
        guard.record(doubts[-1], 3.0, norm)
    return guard, doubts, norm


@given(LEVELS, TINY, FLAT, st.floats(0, math.log(1.25)), st.integers(0, 9))
def test_a_growth_of_less_than_a_quarter_a_step_is_never_a_spike(level, spread, flat, growth, seed):
    assert set(smooth(level, spread, 60, growth, flat, seed)[1]) == {None}


@given(LEVELS, TINY, FLAT, st.floats(1.0, 3.0), st.integers(0, 9))
def test_a_rise_below_the_floor_is_never_a_spike(level, spread, steps, factor, seed):
    guard, _, _ = smooth(level, spread, steps, seed=seed)
    assert guard.doubt(3.0, level * factor) is None


@given(LEVELS, TINY, FLAT, st.floats(0, 0.02), st.floats(5.0, 1e6), st.integers(1, 8))
def test_a_jump_is_a_spike_as_often_as_is_waited_for(level, spread, steps, growth, factor, patience):
    guard, _, norm = smooth(level, spread, 0, growth, steps, spike_patience=patience)
    for last in [False] * (patience - 1) + [True]:
        assert guard.doubt(3.0, norm * factor) == "grad_norm_spike"
        assert guard.record("grad_norm_spike", 3.0, norm * factor) is last


@given(LEVELS, TINY, FLAT, st.floats(5.0, 1e6), st.integers(2, 5), st.integers(1, 4))
def test_a_spike_shortly_before_hides_none_of_a_streak(level, spread, steps, factor, patience, between):
    guard, _, norm = smooth(level, spread, steps, spike_patience=patience)
    assert guard.doubt(3.0, norm * factor) == "grad_norm_spike"
    guard.record("grad_norm_spike", 3.0, norm * factor)
    for _ in range(between):
        guard.record(None, 3.0, norm)
    for last in [False] * (patience - 1) + [True]:
        assert guard.doubt(3.0, norm * factor) == "grad_norm_spike"
        assert guard.record("grad_norm_spike", 3.0, norm * factor) is last


@given(st.floats(0.1, 20.0), st.floats(0, 0.03), st.floats(1.3, 100.0))
def test_a_loss_that_grows_is_no_spike_and_a_jump_of_it_is(loss, growth, factor):
    guard, value = Guard(GuardConfig(), TrainState()), loss
    for step in range(60):
        value = loss * (1 + growth) ** max(0, step - WARMUP)
        assert guard.doubt(value, 1.0) is None
        guard.record(None, value, 1.0)
    assert guard.doubt(value * factor * (1 + 8.5 * growth), 1.0) == "loss_spike"
