"""The size of every step is a function of its number, and what is derived from it agrees."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distllm.config.compose import compose
from distllm.config.diff import changes
from distllm.config.problems import Problems
from distllm.config.resolve import resolve
from distllm.config.schema import Config, DataConfig, TrainConfig
from distllm.config.schema_batch import BatchConfig
from distllm.config.steps import StepSizes, divisors, micro_batch_of
from distllm.errors import ConfigProblems
from distllm.train.excluded import first_sample, steps_of

WORDS = ["train.tokens_per_step=4096", "data.seq_len=128", "engine.micro_batch_tokens=512"]


def sizes_of(start, warmup, last=64, seq_len=8):
    return StepSizes.from_config(
        Config(
            data=DataConfig(seq_len=seq_len),
            train=TrainConfig(tokens_per_step=last * seq_len, max_steps=9),
            batch=BatchConfig(
                start_tokens=start * seq_len if start else None, warmup_tokens=warmup * seq_len
            ),
        )
    )


def test_each_size_has_an_equal_part_of_the_warm_up():
    sizes = sizes_of(start=8, warmup=192)
    assert [sizes.at(step) for step in range(16)] == [8] * 8 + [16] * 4 + [32] * 2 + [64] * 2
    assert sizes.before(14) == 192


def test_a_part_that_one_step_fills_has_one_step_and_an_empty_one_none():
    assert [sizes_of(8, 3).at(step) for step in range(3)] == [8, 64, 64]
    assert [sizes_of(8, 30).at(step) for step in range(4)] == [8, 8, 16, 64]


def test_without_a_warm_up_all_steps_are_alike():
    sizes = sizes_of(None, 0)
    assert sizes == StepSizes.constant(64)
    assert (sizes.at(0), sizes.at(10**9), sizes.before(10**9), sizes.fitting(639)) == (64, 64, 64 * 10**9, 9)


@given(start=st.sampled_from([1, 2, 8, 32]), warmup=st.integers(1, 2000))
def test_what_is_derived_is_the_sum_of_the_sizes(start, warmup):
    sizes, before = sizes_of(start, warmup), 0
    for step in range(80):
        assert sizes.before(step) == before
        assert sizes.fitting(before) == step
        size = sizes.at(step)
        assert sizes.at(step + 1) in (size, *(size << done for done in range(1, 7)))
        samples = np.arange(before, before + size)
        assert set(sizes.steps_of(samples)) == {step}
        before += size
    assert sizes.at(10_000) == 64
    assert warmup <= sizes.before(next(step for step in range(4000) if sizes.at(step) == 64)) < warmup + 64


def test_samples_that_were_left_out_shift_what_follows():
    sizes = sizes_of(8, 192)
    excluded = [[16, 32]]  # the third and fourth step, which are taken on what follows
    firsts = [first_sample(step, sizes, excluded) for step in range(1, 12)]
    assert firsts == [0, 8, 32, 40, 48, 56, 64, 72, 80, 96, 112]
    assert steps_of(np.array(firsts), sizes, excluded).tolist() == list(range(1, 12))


@pytest.mark.parametrize(("sequences", "bound", "size"), [(12, 8, 6), (2, 8, 2), (7, 3, 1)])
def test_a_micro_batch_divides_the_sequences_of_a_rank(sequences, bound, size):
    assert micro_batch_of(sequences, bound) == size


def test_the_length_of_a_growing_run_follows_either_way():
    growing = ["batch.start_tokens=1024", "batch.warmup_tokens=8192"]
    steps = resolve(compose([*WORDS, *growing, "train.max_steps=10"]), starts_here=False)
    tokens = resolve(
        compose([*WORDS, *growing, f"train.total_tokens={steps.total_tokens}"]), starts_here=False
    )
    assert steps.total_tokens == 4 * 1024 + 2 * 2048 + 4 * 4096
    assert tokens.max_steps == 10
    assert "growing" in steps.derivations["total_tokens"].formula


@pytest.mark.parametrize(
    ("words", "cause", "remedy"),
    [
        (["batch.start_tokens=1000", "batch.warmup_tokens=8192"], "cannot grow from 1000", "2048, 1024, 512"),
        (["batch.start_tokens=1024"], "needs both", "batch.warmup_tokens=0"),
        (["batch.warmup_tokens=8192"], "needs both", "batch.start_tokens=null"),
    ],
)
def test_steps_that_cannot_grow_are_refused(words, cause, remedy):
    with pytest.raises(ConfigProblems) as refused:
        resolve(compose([*WORDS, *words, "train.max_steps=10"]), problems=Problems(), starts_here=False)
    assert cause in str(refused.value)
    assert remedy in str(refused.value)


def test_a_key_that_is_younger_than_a_checkpoint_had_its_default():
    from dataclasses import asdict

    before, after = asdict(Config()), asdict(Config())
    del before["batch"]
    assert changes(before, after) == []
    after["batch"]["start_tokens"] = 8
    assert [change.key for change in changes(before, after)] == ["batch.start_tokens"]


def test_divisors_are_found_from_the_root_on():
    for count in range(1, 400):
        assert divisors(count) == [size for size in range(1, count + 1) if count % size == 0]
    assert micro_batch_of(10**12, 10**9) == 10**9, "within a second, however many sequences a step has"
