"""Which samples a step was trained on, after rewinds left some out."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from transactions import transaction

from distllm.config.steps import StepSizes
from distllm.train.excluded import excluded_samples, first_sample, steps_of
from distllm.train.state import TrainState

PER_STEP = 4
SIZES = StepSizes.constant(PER_STEP)


def walk(steps, excluded):
    """The first sample of each step as the loop finds it."""
    state, firsts = TrainState(excluded=excluded), []
    for _ in range(steps):
        state.samples = state.next_samples()
        firsts.append(state.samples)
        state.samples += PER_STEP
    return firsts


@st.composite
def ranges(draw):
    """Ranges of whole steps that begin where a step begins, in the order of the rewinds."""
    found, position = [], 0
    for _ in range(draw(st.integers(0, 4))):
        first = position + PER_STEP * draw(st.integers(0, 5))
        position = first + PER_STEP * draw(st.integers(1, 3))
        found.append([first, position])
    return draw(st.permutations(found))


@given(ranges())
def test_every_step_begins_where_the_loop_began_it(excluded):
    assert [first_sample(step, SIZES, excluded) for step in range(1, 41)] == walk(40, excluded)


@given(ranges(), st.lists(st.integers(0, 200), max_size=12))
def test_samples_belong_to_the_steps_that_took_them(excluded, samples):
    took = {
        sample: step
        for step, first in enumerate(walk(60, excluded), 1)
        for sample in range(first, first + PER_STEP)
    }
    expected = sorted({took[sample] for sample in samples if sample in took})
    assert steps_of(np.array(samples, dtype=np.int64), SIZES, excluded).tolist() == expected


def test_the_newest_checkpoint_says_what_was_left_out(tmp_path):
    assert excluded_samples(tmp_path) == []
    for step, excluded in ((4, []), (8, [[16, 24]])):
        save(tmp_path, step, {"excluded": excluded})
    assert excluded_samples(tmp_path) == [[16, 24]]
    (tmp_path / "step-000000012").mkdir()
    assert excluded_samples(tmp_path) == [[16, 24]], "a checkpoint without its state says nothing"
    save(tmp_path, 16, {"excluded": [[16, 24], [32, 40]]})
    state = tmp_path / "step-000000016" / "state.json"
    state.write_text(state.read_text().replace("32", "33"))
    assert excluded_samples(tmp_path) == [[16, 24]], "a damaged state says nothing"


def save(directory, step, state):
    with transaction(directory, step) as files:
        files.write("state.json", json.dumps({"format": 1, "train_state": state}).encode())


def test_checkpoints_of_older_versions_left_nothing_out(tmp_path):
    save(tmp_path, 4, {"samples": 3})
    assert excluded_samples(tmp_path) == []
