import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distllm.optim.schedule import LearningRate

NAMES = ("constant", "linear", "cosine", "wsd", "inverse_sqrt")


@st.composite
def rates(draw):
    step = draw(st.integers(1, 10**7))
    steps = draw(st.integers(1, 10**6))
    total = step * steps
    return LearningRate(
        name=draw(st.sampled_from(NAMES)),
        peak=draw(st.floats(1e-6, 1.0)),
        warmup_tokens=round(total * draw(st.floats(0.0, 1.0))),
        total_tokens=total,
        tokens_per_step=step,
        final_fraction=draw(st.floats(0.0, 1.0)),
        decay_fraction=draw(st.floats(0.01, 1.0)),
    )


def ends(rate):
    """Tokens seen at the end of up to a hundred steps, evenly over the run."""
    steps = rate.total_tokens // rate.tokens_per_step
    return [step * rate.tokens_per_step for step in range(1, steps + 1, max(1, steps // 100))]


@given(rates())
def test_rises_through_warm_up_and_falls_after(rate):
    warm = [t for t in ends(rate) if t <= rate.warmup_tokens]
    cold = [t for t in ends(rate) if t > rate.warmup_tokens]
    rising, falling = [rate.at(t) for t in warm], [rate.at(t) for t in cold]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)


@given(rates())
def test_stays_between_zero_and_peak_and_never_starts_at_zero(rate):
    values = [rate.at(t) for t in ends(rate)]
    assert all(0.0 <= value <= rate.peak * (1 + 1e-12) for value in values)
    if rate.total_tokens > rate.tokens_per_step:
        assert values[0] > 0.0


@given(rates())
def test_never_jumps(rate):
    for tokens in ends(rate):
        # the steepest a shape can be, over one token, is that of the cosine, of wsd or of the warm-up
        decay = max(1, rate.total_tokens - rate.warmup_tokens)
        shape = max(math.pi / 2, 1 / rate.decay_fraction if rate.name == "wsd" else 0.0) / decay
        steepest = rate.peak * max(1 / max(1, rate.warmup_tokens), shape)
        if rate.name == "inverse_sqrt":
            steepest = rate.peak / max(rate.warmup_tokens, rate.tokens_per_step)
        assert abs(rate.at(tokens + 1) - rate.at(tokens)) <= steepest * (1 + 1e-6) + 1e-12


@given(rates())
def test_the_last_step_and_all_beyond_run_at_the_floor(rate):
    floor = rate.peak * (1.0 if rate.name == "constant" else rate.final_fraction)
    if rate.name != "inverse_sqrt" and rate.warmup_tokens < rate.total_tokens:
        assert rate.at(rate.total_tokens) == pytest.approx(floor, rel=1e-9, abs=1e-15)
        assert rate.at(rate.total_tokens * 2) == pytest.approx(floor, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("name", "expected"), [("constant", 1.0), ("linear", 0.55), ("cosine", 0.55)])
def test_half_way_is_half_way(name, expected):
    rate = LearningRate(name, 1.0, 100, 1100, 10, 0.1)
    assert rate.at(600) == pytest.approx(expected)
    assert rate.at(50) == pytest.approx(0.5)
    assert rate.at(100) == 1.0


def test_linear_and_cosine_differ_on_the_way():
    linear, cosine = (LearningRate(name, 1.0, 0, 100, 1, 0.0) for name in ("linear", "cosine"))
    assert linear.at(25) == pytest.approx(0.75)
    assert cosine.at(25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_wsd_holds_and_then_decays_in_a_straight_line():
    rate = LearningRate("wsd", 1.0, 100, 1100, 1, 0.0, decay_fraction=0.25)
    assert [rate.at(seen) for seen in (50, 100, 500, 850)] == pytest.approx([0.5, 1.0, 1.0, 1.0])
    assert [rate.at(seen) for seen in (975, 1100, 2000)] == pytest.approx([0.5, 0.0, 0.0])
    held = LearningRate("wsd", 1.0, 0, 100, 1, 0.0, decay_fraction=0.0)
    assert held.at(100) == 1.0


def test_the_inverse_root_halves_when_the_tokens_are_four_times_those_of_the_warm_up():
    rate = LearningRate("inverse_sqrt", 2.0, 100, 10_000, 1, 0.0)
    assert [rate.at(seen) for seen in (100, 400, 1600)] == pytest.approx([2.0, 1.0, 0.5])
    floored = LearningRate("inverse_sqrt", 2.0, 100, 10**6, 1, 0.2)
    assert floored.at(10**6) == pytest.approx(0.4)
    assert floored.at(400) == pytest.approx(1.0)


def test_without_a_warm_up_the_inverse_root_begins_with_the_first_step():
    rate = LearningRate("inverse_sqrt", 1.0, 0, 1000, 10, 0.0)
    assert [rate.at(10), rate.at(40)] == pytest.approx([1.0, 0.5])
