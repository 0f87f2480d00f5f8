"""Checks of the task: does it fit the model, and the keys that only some tasks read."""

from __future__ import annotations

from collections.abc import Mapping

from distllm.config.problems import Problems
from distllm.config.schema import Config

_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "causal_lm": ("decoder",),
    "masked_lm": ("encoder",),
    "span_corruption": ("encoder_decoder",),
    "seq2seq": ("encoder_decoder", "decoder"),
    "instruct": ("decoder",),
    "extractive_qa": ("encoder",),
    "contrastive": ("encoder",),
    "dpo": ("decoder",),
}

# Which tasks have a metric: the others predict no tokens, or not all tokens of a text.
_MEASURED_IN: Mapping[str, tuple[str, ...]] = {
    "perplexity": ("causal_lm", "masked_lm", "span_corruption", "seq2seq", "instruct"),
    "bits_per_byte": ("causal_lm",),
}


def check_task(config: Config, problems: Problems) -> None:
    """Check that the model's family can learn the task, and that the other keys fit the task."""
    task, family = config.task, config.model.family
    fitting = _FAMILIES[task.name]
    problems.check(
        family in fitting,
        f"task.name={task.name} needs a model of family {' or '.join(fitting)}, and this is {family}",
        keys=["task.name", "model.family"],
        remedy=f"choose a model of family {fitting[0]} (conf/model), or another task",
    )
    problems.check(
        task.name == "causal_lm" or config.data.mask_documents,
        f"the rows of task.name={task.name} hold several examples, which must not attend to each other",
        keys=["task.name", "data.mask_documents"],
        remedy="data.mask_documents=true",
    )
    problems.check(
        task.name == "causal_lm" or config.mixture.seq_len_start is None,
        f"a sequence-length warm-up cuts rows, but rows of task.name={task.name} must hold whole examples",
        keys=["task.name", "mixture.seq_len_start"],
        remedy="mixture.seq_len_start=null",
    )
    problems.check(
        task.name != "dpo" or config.model.init_from is not None,
        "preference optimisation needs a trained model to start from and to compare with",
        keys=["task.name", "model.init_from"],
        remedy="distllm export run=NAME, then model=hf model.init_from=runs/NAME/hf",
    )
    stopping = config.train.early_stopping
    able = _MEASURED_IN.get(stopping.metric, tuple(_FAMILIES))
    problems.check(
        stopping.patience is None or task.name in able,
        f"validation of task.name={task.name} has no {stopping.metric}, by which the run is to stop early",
        keys=["train.early_stopping.metric", "task.name"],
        remedy="train.early_stopping.metric=loss",
    )
    problems.check(
        task.name != "extractive_qa" or task.stride < config.data.seq_len,
        f"windows of {config.data.seq_len} tokens with a stride of {task.stride} miss parts of the context",
        keys=["task.stride", "data.seq_len"],
        remedy=f"task.stride={config.data.seq_len // 3}",
    )
