"""A task and a model that do not fit are named before anything starts."""

import pytest

from distllm.config.checks_task import check_task
from distllm.config.problems import Problems
from distllm.config.resolve import resolve
from distllm.config.schema import Config, DataConfig, MixtureConfig, ModelConfig, TaskConfig, TrainConfig

FITTING = {
    "causal_lm": {"decoder"},
    "masked_lm": {"encoder"},
    "span_corruption": {"encoder_decoder"},
    "seq2seq": {"decoder", "encoder_decoder"},
    "instruct": {"decoder"},
    "extractive_qa": {"encoder"},
    "contrastive": {"encoder"},
    "dpo": {"decoder"},
}


def causes(**groups):
    problems = Problems()
    check_task(Config(**groups), problems)
    return [problem.cause for problem in problems.found]


@pytest.mark.parametrize("task", FITTING)
@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder_decoder"])
def test_only_families_that_can_learn_a_task_are_accepted(task, family):
    found = causes(task=TaskConfig(name=task), model=ModelConfig(family=family, init_from="somewhere"))
    assert bool(found) == (family not in FITTING[task])
    assert all(
        f"task.name={task} needs a model of family" in cause and f"this is {family}" in cause
        for cause in found
    )


def test_examples_never_see_each_other():
    seq2seq = TaskConfig(name="seq2seq")
    assert "must not attend to each other" in causes(task=seq2seq, data=DataConfig(mask_documents=False))[0]
    assert not causes(data=DataConfig(mask_documents=False))


def test_a_sequence_length_warm_up_is_for_plain_text():
    warm = MixtureConfig(seq_len_start=64, seq_len_warmup=4096)
    assert "whole examples" in causes(task=TaskConfig(name="seq2seq"), mixture=warm)[0]
    assert not causes(mixture=warm)


def test_windows_must_overlap():
    encoder = ModelConfig(family="encoder")
    wide = TaskConfig(name="extractive_qa", stride=512)
    assert "miss parts" in causes(task=wide, model=encoder, data=DataConfig(seq_len=512))[0]
    assert not causes(task=wide, model=encoder, data=DataConfig(seq_len=1024))


@pytest.mark.parametrize(("source_len", "longest"), [(None, 128), (64, 128), (512, 512)])
def test_the_model_reaches_as_far_as_the_longer_of_source_and_target(source_len, longest):
    config = Config(
        data=DataConfig(seq_len=128, source_len=source_len),
        train=TrainConfig(tokens_per_step=1024, max_steps=1),
    )
    assert resolve(config, starts_here=False).shape.max_seq_len == longest


def test_preferences_need_a_model_to_begin_with():
    assert "needs a trained model" in causes(task=TaskConfig(name="dpo"))[0]
    assert not causes(task=TaskConfig(name="dpo"), model=ModelConfig(init_from="runs/mine/hf"))
