"""Where a run cannot be differentially private, and why."""

from __future__ import annotations

from distllm.config.problems import Problems
from distllm.config.schema import Config

_NOISE = "optim.private.noise"
_DEPENDENT = {
    "contrastive": "the loss of a pair depends on all other pairs of the step",
    "extractive_qa": "a question has several rows, and only the influence of one row is bounded",
}


def check_private(config: Config, problems: Problems) -> None:
    """Refuse what would let a row change more of the weights than its clipped gradient, or skip the noise."""
    if config.optim.private.noise is None:
        return
    engine, task = config.engine, config.task.name
    problems.check(
        engine.name == "local",
        "DeepSpeed sums the gradients of rows and ranks as they come, and none of them can be clipped alone",
        keys=[_NOISE, "engine.name"],
        remedy="engine=local",
    )
    problems.check(
        config.precision.compute == "fp32",
        "bf16 keeps 8 bits of a gradient, too few to carry noise of a known size",
        keys=[_NOISE, "precision.compute"],
        remedy="precision=fp32",
    )
    problems.check(
        engine.sequence_ranks == 1,
        "ranks that share a row have each a part of its gradient, and none its norm",
        keys=[_NOISE, "engine.sequence_ranks"],
        remedy="engine.sequence_ranks=1",
    )
    problems.check(
        engine.expert_ranks == 1,
        "the gradient of an expert that lies on one rank holds the rows of all",
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
        "a row holds several documents or a part of one, and which ones depends on all of them: a bound "
        "for a row is none for what anybody wrote",
        keys=[_NOISE, "data.packing"],
        remedy="data.packing=single, with data.too_long=cut or drop for what no row holds",
    )
    problems.check(
        config.guard.spike_threshold == 0,
        "whether a step is a spike is judged by the loss of its rows, without noise",
        keys=[_NOISE, "guard.spike_threshold"],
        remedy="guard.spike_threshold=0",
    )
    problems.check(
        config.batch.start_tokens is None,
        "steps that grow have another share of noise each, and are accounted for as equal",
        keys=[_NOISE, "batch.start_tokens"],
        remedy="batch=constant",
    )
