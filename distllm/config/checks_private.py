"""Checks of differentially private runs."""

from __future__ import annotations

from distllm.config.problems import Problems
from distllm.config.schema import Config

_NOISE = "optim.private.noise"
_DEPENDENT = {
    "contrastive": "the loss of a pair depends on all other pairs of the step",
    "extractive_qa": "a question has several rows, and only the influence of one row is bounded",
}


def check_private(config: Config, problems: Problems) -> None:
    """Refuse settings with which a row influences the weights beyond its clipped, noisy gradient."""
    if config.optim.private.noise is None:
        return
    engine, task = config.engine, config.task.name
    problems.check(
        engine.name == "local",
        "DeepSpeed sums the gradients of rows, so that single rows cannot be clipped",
        keys=[_NOISE, "engine.name"],
        remedy="engine=local",
    )
    problems.check(
        config.precision.compute == "fp32",
        "bf16 keeps 8 bits of a gradient, too few for noise of a known size",
        keys=[_NOISE, "precision.compute"],
        remedy="precision=fp32",
    )
    problems.check(
        engine.sequence_ranks == 1,
        "with sequence parallelism each rank has a part of a row's gradient, and none knows its norm",
        keys=[_NOISE, "engine.sequence_ranks"],
        remedy="engine.sequence_ranks=1",
    )
    problems.check(
        engine.expert_ranks == 1,
        "with expert parallelism the gradient of an expert sums the rows of all ranks",
        keys=[_NOISE, "engine.expert_ranks"],
        remedy="engine.expert_ranks=1",
    )
    problems.check(
        task not in _DEPENDENT,
        f"task.name={task} cannot be private: {_DEPENDENT.get(task)}",
        keys=[_NOISE, "task.name"],
        remedy="choose another task, such as instruct",
    )
    problems.check(
        config.data.packing == "single" or task in _DEPENDENT,
        "with this packing a row holds several documents or parts of them, so a bound for a row is not one "
        "for a document",
        keys=[_NOISE, "data.packing"],
        remedy="data.packing=single, with data.too_long=cut or drop for documents longer than a row",
    )
    problems.check(
        config.guard.spike_threshold == 0,
        "the guard judges spikes by the loss of rows without noise",
        keys=[_NOISE, "guard.spike_threshold"],
        remedy="guard.spike_threshold=0",
    )
    problems.check(
        config.batch.start_tokens is None,
        "the accountant assumes steps of equal size, and a batch-size warm-up changes it",
        keys=[_NOISE, "batch.start_tokens"],
        remedy="batch=constant",
    )
