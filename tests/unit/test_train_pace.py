"""A rank that slows the others down is named within 20 steps; noise is not."""

import random
import time

import pytest
import torch

from distllm.train.pace import OwnTime, Pace


def told(seconds_of_step, steps, factor=2.0):
    pace = Pace(factor)
    found = {step: pace.slow_rank(seconds_of_step(step)) for step in range(1, steps + 1)}
    return {step: straggler for step, straggler in found.items() if straggler is not None}


def noisy(generator, *means):
    return [mean * generator.uniform(0.8, 1.25) for mean in means]


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_slow_rank_is_named_within_twenty_steps_and_once(ranks):
    generator = random.Random(0)
    means = [0.05] * ranks
    means[1] += 0.06
    found = told(lambda _: noisy(generator, *means), 150)
    ((step, straggler),) = found.items()
    assert step <= 20
    assert straggler.rank == 1
    assert straggler.seconds == pytest.approx(0.11, rel=0.2)
    assert str(straggler).startswith("rank 1 slows the others down: its own part of a step takes 0.1")


def test_one_that_stays_slow_is_told_again_in_time():
    assert list(told(lambda _: [0.1, 0.3], 450)) == [16, 216, 416]


def test_a_rank_that_becomes_slow_is_named_within_twenty_steps():
    found = told(lambda step: [0.05, 0.05, 0.2 if step > 100 else 0.05], 130)
    assert [step - 100 <= 20 for step in found] == [True]


@pytest.mark.parametrize(
    "seconds",
    [
        lambda step: [0.1, 5.0 if step % 10 == 0 else 0.1],  # pauses
        lambda step: [0.001, 0.005],  # too little to matter
        lambda step: [0.1, 0.15],
        lambda step: [0.1],
    ],
)
def test_noise_is_no_straggler(seconds):
    assert told(seconds, 100) == {}


def test_zero_turns_it_off():
    assert told(lambda _: [0.1, 9.0], 100, factor=0.0) == {}


def test_own_time_is_what_the_blocks_took():
    own = OwnTime(torch.device("cpu"))
    with own.measured():
        time.sleep(0.02)
    time.sleep(0.05)
    with own.measured():
        time.sleep(0.02)
    assert own.lap() >= 0.04
    assert own.lap() == 0.0
