"""Which steps are believed, and when a run must go back."""

import math
import random

import pytest

from distllm.config.schema import GuardConfig
from distllm.train.guard import WARMUP, Guard, deviations
from distllm.train.state import TrainState

NAN, INF = math.nan, math.inf


def trained(steps=64, seed=0, config=None):
    """A guard that has seen an ordinary falling loss curve with its noise."""
    guard = Guard(config or GuardConfig(), TrainState())
    noise = random.Random(seed)
    for step in range(steps):
        loss = 6 * math.exp(-step / 200) + noise.gauss(0, 0.05)
        norm = math.exp(noise.gauss(0, 0.3))
        assert guard.doubt(loss, norm) is None, step
        guard.record(None, loss, norm)
    return guard


def windows(guard):
    return guard._state.recent_losses, guard._state.recent_grad_norms


@pytest.mark.parametrize("loss", [NAN, INF, -INF, 3.0])
@pytest.mark.parametrize("norm", [NAN, INF, 1.0])
def test_what_is_not_finite_is_doubted_from_the_first_step(loss, norm):
    fine = loss == 3.0 and norm == 1.0
    assert Guard(GuardConfig(), TrainState()).doubt(loss, norm) == (None if fine else "non_finite")


@pytest.mark.parametrize("seed", range(20))
def test_an_ordinary_curve_is_never_doubted(seed):
    trained(400, seed)


def test_a_spike_of_either_number_is_doubted():
    guard = trained()
    assert guard.doubt(9.0, 1.0) == "loss_spike"
    assert guard.doubt(4.5, 60.0) == "grad_norm_spike"


def test_a_fall_is_never_a_spike():
    assert trained().doubt(0.01, 1e-12) is None
    assert trained().doubt(4.5, 0.0) is None


def test_one_value_that_is_not_finite_does_not_blind_the_rule():
    guard = trained()
    before = [list(window) for window in windows(guard)]
    guard.record("non_finite", NAN, INF)
    assert [list(window) for window in windows(guard)] == before
    assert guard.doubt(9.0, 1.0) == "loss_spike"


def test_a_few_spikes_in_the_window_do_not_blind_the_rule():
    guard = trained()
    for _ in range(WARMUP):
        guard.record("loss_spike", 50.0, 1.0)
        guard.record(None, 4.5, 1.0)
    assert guard.doubt(50.0, 1.0) == "loss_spike"


def test_nothing_is_a_spike_before_the_window_knows_what_is_normal():
    guard = Guard(GuardConfig(), TrainState())
    for _ in range(WARMUP - 1):
        guard.record(None, 5.0, 1.0)
    assert guard.doubt(500.0, 1.0) is None
    guard.record(None, 5.0, 1.0)
    assert guard.doubt(500.0, 1.0) == "loss_spike"


def test_a_curve_without_noise_may_rise_a_little():
    guard = Guard(GuardConfig(), TrainState())
    for _ in range(WARMUP):
        guard.record(None, 5.0, 1.0)
    assert guard.doubt(5.5, 2.0) is None


def test_a_threshold_of_zero_turns_spikes_off_but_not_what_is_not_finite():
    guard = trained(config=GuardConfig(spike_threshold=0.0))
    assert guard.doubt(1e9, 1e9) is None
    assert guard.doubt(NAN, 1.0) == "non_finite"


def test_a_threshold_is_in_standard_deviations_of_normal_noise():
    noise = random.Random(3)
    window = [*(noise.gauss(10.0, 2.0) for _ in range(4001)), *[10.0] * WARMUP]
    assert deviations(20.0, window) == pytest.approx(5.0, rel=0.1)
    assert deviations(4.0, window) == pytest.approx(-3.0, rel=0.1)


def test_the_fall_of_a_curve_does_not_widen_its_noise():
    noise = random.Random(3)
    falling = [20 - step / 10 + noise.gauss(0, 0.1) for step in range(128)]
    assert deviations(falling[-1] + 4.0, falling) > 20


def test_the_window_forgets():
    guard = trained(64, config=GuardConfig(window=16))
    assert [len(window) for window in windows(guard)] == [16, 16]
    for _ in range(16):
        guard.record(None, 20.0, 1.0)
    assert set(windows(guard)[0]) == {20.0}


def outcomes(state, pattern, config=None):
    """Record ``.`` (good), ``x`` (not finite) and ``s`` (spike), eight samples each."""
    guard = Guard(config or GuardConfig(), state)
    answers = []
    for mark in pattern:
        reason = {".": None, "x": "non_finite", "s": "loss_spike"}[mark]
        answers.append(guard.record(reason, NAN if mark == "x" else 1.0, 1.0))
        state.samples += 8
    return answers


def test_skips_are_counted_in_all_and_in_a_row():
    state = TrainState()
    outcomes(state, "x..xs")
    assert (state.skipped_steps, state.skips_in_a_row, state.streak_samples) == (3, 2, 24)
    outcomes(state, ".")
    assert (state.skipped_steps, state.skips_in_a_row) == (3, 0)
    outcomes(state, "s")
    assert (state.skips_in_a_row, state.streak_samples) == (1, 48)


@pytest.mark.parametrize("budget", [1, 5])
def test_the_run_goes_back_when_the_budget_is_spent_and_not_before(budget):
    answers = outcomes(TrainState(), "x" * (budget - 1) + "." + "x" * budget, GuardConfig(skip_budget=budget))
    assert answers == [False] * (2 * budget - 1) + [True]


def test_patience_with_spikes_is_shorter():
    config = GuardConfig(spike_patience=2, skip_budget=10)
    assert outcomes(TrainState(), "s.ss", config) == [False, False, False, True]
    assert outcomes(TrainState(), "xs", config) == [False, True]


def test_a_resumed_guard_judges_as_the_one_before():
    guard = trained()
    resumed = Guard(GuardConfig(), TrainState.from_dict(guard._state.to_dict()))
    numbers = random.Random(5)
    for _ in range(200):
        loss, norm = numbers.uniform(3, 9), math.exp(numbers.uniform(-3, 5))
        assert resumed.doubt(loss, norm) == guard.doubt(loss, norm)
