"""Every promised sample is trained on or known to be left out; otherwise the run is not done."""

import random
from types import SimpleNamespace

import numpy as np
import pytest

from distllm.config.steps import StepSizes
from distllm.errors import TrainingError
from distllm.train.excluded import first_sample
from distllm.train.rewind import leave_out
from distllm.train.samples import count_samples, require_complete, rows_of
from distllm.train.state import TrainState

OF_A_STEP = 16
SIZES = StepSizes.constant(OF_A_STEP)


def step(state, rows=OF_A_STEP, *, damaged=0, skipped=False):
    """What the loop does to the state in one step."""
    state.samples = state.next_samples()
    state.step += 1
    state.samples += OF_A_STEP
    state.skipped_steps += skipped
    state.count_samples(rows, damaged, skipped=skipped)


def taken(steps, **of_each):
    state = TrainState()
    for _ in range(steps):
        step(state, **of_each)
    return state


def test_the_samples_of_whole_steps_are_all_trained_on():
    samples = count_samples(taken(5), SIZES)
    assert samples.to_dict() == {
        "promised": 80, "seen": 80, "trained": 80, "skipped": 0, "excluded": 0, "damaged": 0,
    }  # fmt: skip
    assert samples.gap == 0


def test_skipped_damaged_and_excluded_samples_explain_themselves():
    state = taken(2)
    step(state, damaged=3)
    step(state, skipped=True, damaged=1)
    state.excluded = [[64, 96]]
    step(state)
    samples = count_samples(state, SIZES)
    assert (samples.trained, samples.skipped, samples.excluded, samples.damaged) == (61, 15, 32, 4)
    assert (samples.promised, samples.seen, state.samples) == (112, 80, 112)
    require_complete(samples, state)


@pytest.mark.parametrize(
    ("excluded", "samples", "expected"),
    [
        ([], 100, 0),
        ([[16, 48]], 16, 0),
        ([[16, 48]], 48, 32),
        ([[16, 48]], 64, 32),
        ([[64, 80], [16, 48]], 80, 48),
        ([[16, 80], [32, 48]], 96, 64),
        ([[16, 48], [32, 64]], 96, 48),
    ],
)
def test_only_what_lies_behind_the_run_is_left_out_and_counts_once(excluded, samples, expected):
    assert TrainState(samples=samples, excluded=excluded).left_out() == expected


@pytest.mark.parametrize("rows", [OF_A_STEP - 1, OF_A_STEP + 1])
def test_a_batch_with_other_rows_than_promised_is_a_gap_that_is_named(rows):
    state = taken(3)
    step(state, rows)
    samples = count_samples(state, SIZES)
    assert samples.gap == OF_A_STEP - rows
    with pytest.raises(
        TrainingError, match=f"{OF_A_STEP - rows} of 64 promised samples are unaccounted for"
    ) as caught:
        require_complete(samples, state)
    assert f"{48 + rows} trained + 0 skipped" in str(caught.value)


def test_a_run_that_stands_elsewhere_than_promised_is_not_done():
    state = taken(3)
    state.samples += OF_A_STEP
    with pytest.raises(TrainingError, match="is at sample 64"):
        require_complete(count_samples(state, SIZES), state)


@pytest.mark.parametrize("seed", range(50))
def test_no_order_of_skips_rewinds_kills_and_damage_opens_a_gap(seed):
    choose = random.Random(seed)
    state, checkpoints = TrainState(), [TrainState().to_dict()]
    for _ in range(200):
        action = choose.choice(
            ["step", "step", "step", "skip", "damage", "save", "kill", "rewind", "corrupt"]
        )
        if action in ("step", "skip", "damage"):
            step(state, skipped=action == "skip", damaged=3 if action == "damage" else 0)
        elif action == "save":
            checkpoints.append(TrainState.from_dict(state.to_dict()).to_dict())
        elif action == "kill":
            state.restore(checkpoints[-1])
        else:
            back = choose.randrange(1, 4)
            good = max(0, state.step - back)
            del checkpoints[max(1, sum(c["step"] <= good for c in checkpoints)) :]
            excluded = list(state.excluded)
            if action == "rewind" and state.step - checkpoints[-1]["step"] > 0:
                first = TrainState.from_dict(checkpoints[-1])
                first.excluded = excluded
                excluded = [*excluded, [first.next_samples(), state.samples]]
            state.restore(checkpoints[-1])
            state.excluded = excluded
            checkpoints[-1] = state.to_dict() | {"excluded": excluded}
        require_complete(count_samples(state, SIZES), state)


def test_a_streak_across_an_earlier_range_replaces_it():
    """Everybody who counts places in the order relies on ranges that do not overlap."""
    excluded = leave_out(leave_out([], (112, 144)), (96, 160))
    assert excluded == [[96, 160]]
    assert leave_out(excluded, (160, 176)) == [[96, 160], [160, 176]]
    assert leave_out(excluded, None) == excluded
    state, firsts = TrainState(excluded=excluded), []
    for _ in range(12):
        step(state)
        firsts.append(state.samples - OF_A_STEP)
    assert firsts == [first_sample(number, SIZES, excluded) for number in range(1, 13)]
    require_complete(count_samples(state, SIZES), state)


def test_a_checkpoint_from_before_samples_were_counted_is_complete():
    state = taken(4)
    step(state, skipped=True)
    state.excluded = [[80, 112], [200, 216]]
    step(state)
    values = state.to_dict()
    for name in ("trained_samples", "skipped_samples", "damaged_samples"):
        del values[name]
    older = TrainState.from_dict(values)
    assert older == TrainState.from_dict(state.to_dict())
    require_complete(count_samples(older, SIZES), older)


def test_rows_are_counted_in_the_batches_themselves():
    batches = [SimpleNamespace(sample_ids_B=np.arange(count)) for count in (4, 4, 3)]
    assert rows_of(batches) == 11
    assert rows_of([]) == 0
