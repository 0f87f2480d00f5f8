"""A checkpoint is due where the least time is lost, or every so many steps; on every rank alike."""

import math
import random

import pytest

from distllm.config.schema import CheckpointConfig
from distllm.train.interval import SaveInterval, young_daly_seconds


def derived(hours, *, save=2.0, step=0.5, every=100_000, saves=1):
    interval = SaveInterval(CheckpointConfig(mttf_hours=hours, every_steps=every), 0)
    interval.count_step(step)
    told = [interval.count_save(number, save) for number in range(saves)]
    return interval, told


def test_the_published_example():
    """BLOOM: 40 s a checkpoint, a failure a week; about two hours between checkpoints."""
    assert young_daly_seconds(40, 7 * 24 * 3600) == pytest.approx(116 * 60, rel=0.01)


@pytest.mark.parametrize(("cost", "mttf"), [(40, 604_800), (1, 3600), (0.01, 60)])
def test_no_other_interval_loses_less(cost, mttf):
    def loss(seconds):
        return cost / seconds + seconds / (2 * mttf)

    best = young_daly_seconds(cost, mttf)
    assert all(loss(best) < loss(best * factor) for factor in (0.5, 0.9, 1.1, 2))


def test_without_a_stated_time_to_failure_it_is_every_so_many_steps():
    interval = SaveInterval(CheckpointConfig(every_steps=4), 2)
    interval.count_step(0.5)
    assert interval.count_save(2, 1.0) is None
    interval.agree(1)
    assert [step for step in range(1, 13) if interval.due(step)] == [4, 8, 12]


def test_the_number_of_steps_follows_from_costs_and_is_told_with_its_formula():
    interval, (told,) = derived(1.0)
    assert interval.proposal == round(math.sqrt(2 * 2.0 * 3600) / 0.5) == 240
    assert told == (
        "checkpoints every 240 steps: sqrt(2 x 2 s a save x checkpoint.mttf_hours 1 h) / 0.5 s a step "
        "= 240.0, at most checkpoint.every_steps = 100000"
    )


def test_every_steps_is_an_upper_bound_and_one_step_the_lower():
    bounded, (told,) = derived(1.0, every=100)
    assert bounded.proposal == 100
    assert "= 240.0, at most checkpoint.every_steps = 100" in told
    assert derived(1e-4, step=100.0)[0].proposal == 1


def test_until_a_save_was_measured_the_upper_bound_holds():
    interval = SaveInterval(CheckpointConfig(mttf_hours=0.01, every_steps=10), 7)
    assert [step for step in range(8, 20) if interval.due(step)] == [17, 18, 19]


def test_it_counts_from_the_last_save_also_after_going_back():
    interval, _ = derived(1.0, every=10)
    interval.agree(interval.proposal)
    interval.count_save(30, 2.0)
    assert not interval.due(39)
    assert interval.due(40)
    interval.count_save(20, 2.0)
    assert [step for step in range(21, 32) if interval.due(step)] == [30, 31]


def test_ranks_with_other_clocks_save_at_the_same_steps():
    clocks = random.Random(0)
    ranks = [SaveInterval(CheckpointConfig(mttf_hours=0.01, every_steps=50), 0) for _ in range(3)]
    due = [[] for _ in ranks]
    for step in range(1, 400):
        for rank in ranks:
            rank.agree(ranks[0].proposal)
            rank.count_step(clocks.uniform(0.1, 2))
        for steps, rank in zip(due, ranks, strict=True):
            if rank.due(step):
                steps.append(step)
                rank.count_save(step, clocks.uniform(0.1, 2))
    assert len(due[0]) > 8
    assert due[0] == due[1] == due[2]
    assert len({rank.proposal for rank in ranks}) > 1, "each would have decided otherwise"


def test_noise_does_not_change_the_interval_but_another_cost_does():
    interval, told = derived(1.0, saves=20)
    assert [text is not None for text in told] == [True] + [False] * 19
    for _ in range(3):
        interval.count_save(1, 2.3)
    assert interval.proposal == 240
    changed = [interval.count_save(1, 8.0) for _ in range(5)]
    assert interval.proposal == 480
    assert sum(text is not None for text in changed) == 1


def test_one_slow_save_or_step_is_not_the_cost():
    interval, _ = derived(1.0, saves=4)
    interval.count_save(1, 500.0)
    for _ in range(8):
        interval.count_step(0.5)
    interval.count_step(60.0)
    interval.count_save(1, 2.0)
    assert interval.proposal == 240
