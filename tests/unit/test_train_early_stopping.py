"""A run ends when it no longer gets better, by a state that survives a kill."""

import dataclasses
import json
import math
from types import SimpleNamespace
from typing import get_args

import pytest
from torch import nn

from distllm.config.checks import check_run
from distllm.config.checks_task import check_task
from distllm.config.problems import Problems
from distllm.config.schema import Config, EvalConfig, TrainConfig
from distllm.config.schema_model import ModelConfig
from distllm.config.schema_stopping import EarlyStoppingConfig
from distllm.config.schema_task import TaskConfig, TaskName
from distllm.config.shape import settle_shape
from distllm.dist.topology import Topology
from distllm.errors import ConfigError
from distllm.evaluate.perplexity import Perplexity
from distllm.tasks.registry import build_task
from distllm.train.early_stopping import EarlyStopping
from distllm.train.state import TrainState


def measured(loss, sources=None, unit="token"):
    return Perplexity(loss, 1, 1, sources or {}, unit)


def stopping(state=None, split=None, **config):
    return EarlyStopping(EarlyStoppingConfig(**config), state or TrainState(), Topology.single(), split)


def ends_after(losses, **config):
    """How many evaluations it takes; the state goes through a checkpoint before each of them."""
    state = TrainState()
    for number, loss in enumerate(losses, 1):
        state = TrainState.from_dict(json.loads(json.dumps(state.to_dict())))
        judge = stopping(state, **config)
        judge.judge(measured(loss))
        if judge.over():
            return number
    return None


def test_patience_counts_evaluations_that_were_not_better():
    losses = [5.0, 4.0, 4.1, 3.9, 3.9, 4.0, 3.8]
    assert ends_after(losses, patience=2) == 6
    assert ends_after(losses, patience=3) is None
    assert ends_after(losses, patience=None) is None


def test_better_means_by_more_than_min_delta():
    losses = [5.0, 4.95, 4.9, 4.85]
    assert ends_after(losses, patience=2) is None
    assert ends_after(losses, patience=2, min_delta=0.2) == 3


def test_what_is_no_number_is_not_better():
    assert ends_after([math.nan, math.inf, 1.0], patience=2) == 2
    assert ends_after([math.nan, 2.0, math.nan, 1.0], patience=2) is None


def test_more_patience_lets_an_ended_run_go_on_and_the_reason_is_told():
    state = TrainState(step=8, best_metric=3.5, evaluations_since_best=2)
    ended = stopping(state, patience=2, min_delta=0.1)
    assert ended.over()
    assert ended.why == (
        "early stopping: loss was 3.5000 at best, and the 2 evaluations since were not better "
        "by more than 0.1"
    )
    assert not stopping(state, patience=3).over()


def test_the_loss_of_one_source_can_be_watched():
    split = SimpleNamespace(
        sources=[
            SimpleNamespace(name=name, total=total) for name, total in (("wiki", 3), ("code", 4), ("x", 0))
        ]
    )
    judge = stopping(split=split, patience=1, metric="sources.code")
    judge.judge(measured(1.0, {"wiki": 0.5, "code": 2.0}))
    judge.judge(measured(0.9, {"wiki": 0.2, "code": 2.1}))
    assert judge.over()
    with pytest.raises(ConfigError, match="no source 'x'") as refused:
        stopping(split=split, patience=1, metric="sources.x")
    assert "sources.wiki, sources.code" in refused.value.remedy


def test_a_task_without_text_has_no_perplexity():
    with pytest.raises(ConfigError, match="no perplexity"):
        stopping(patience=1, metric="perplexity").judge(measured(1.0, unit="window"))


@pytest.mark.parametrize(
    ("patience", "metric", "every", "cause"),
    [(1, "loss", 0, "nothing is evaluated"), (1, "los", 5, "unknown metric 'los'"), (None, "loss", 0, None)],
)
def test_what_cannot_stop_a_run_is_refused(patience, metric, every, cause):
    stops = EarlyStoppingConfig(patience=patience, metric=metric)
    train, problems = TrainConfig(max_steps=1, early_stopping=stops), Problems()
    config = Config(train=train, eval=EvalConfig(every_steps=every))
    check_run(config, problems, world_size=1, dataset_tokens=None)
    found = [problem.cause for problem in problems.found if "early_stopping" in str(problem.where)]
    assert len(found) == (cause is not None)
    assert cause is None or cause in found[0]


@pytest.mark.parametrize("name", get_args(TaskName))
def test_metrics_that_a_task_has_not_are_refused_before_it_begins(name):
    config = Config(task=TaskConfig(name=name))
    task = build_task(config, settle_shape(ModelConfig(), 64, 16), nn.Identity())
    for metric, has in (
        ("loss", True),
        ("perplexity", task.unit == "token"),
        ("bits_per_byte", task.reads_text),
    ):
        train, problems = (
            TrainConfig(early_stopping=EarlyStoppingConfig(patience=1, metric=metric)),
            Problems(),
        )
        check_task(dataclasses.replace(config, train=train), problems)
        assert any("by which the run is to stop early" in p.cause for p in problems.found) != has
