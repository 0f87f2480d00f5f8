"""Building the task that a configuration names."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from distllm.config.schema import Config
from distllm.config.shape import ModelShape
from distllm.registry import Registry
from distllm.tasks.base import Task
from distllm.tasks.causal_lm import CausalLM
from distllm.tasks.contrastive import Contrastive
from distllm.tasks.dpo import DPO
from distllm.tasks.extractive_qa import ExtractiveQA
from distllm.tasks.seq2seq import Seq2Seq

Builder = Callable[[Config, ModelShape], Task]


def _text(config: Config, shape: ModelShape) -> Task:
    return CausalLM(
        shape.vocab_size,
        mask_documents=config.data.mask_documents,
        reads_text=config.task.name == "causal_lm",
    )


def _seq2seq(config: Config, shape: ModelShape) -> Task:
    return Seq2Seq(shape.vocab_size) if config.model.family == "encoder_decoder" else _examples(config, shape)


def _examples(_config: Config, shape: ModelShape) -> Task:
    return CausalLM(shape.vocab_size, mask_documents=True, reads_text=False)


_TASKS: Registry[Builder] = Registry(
    "task",
    "task.name",
    {
        "causal_lm": _text,
        "masked_lm": _text,
        "span_corruption": lambda _config, shape: Seq2Seq(shape.vocab_size),
        "seq2seq": _seq2seq,
        "instruct": _examples,
        "extractive_qa": lambda _config, shape: ExtractiveQA(shape.vocab_size),
        "contrastive": lambda config, shape: Contrastive(shape.vocab_size, config.task.temperature),
    },
)


def build_task(config: Config, shape: ModelShape, reference: nn.Module | None = None) -> Task:
    """Build the task ``config.task.name`` for a model of ``shape``.

    Args:
        config: the configuration.
        shape: the model's.
        reference: a copy of the model that training begins with, which only dpo needs.

    Raises:
        ConfigError: the name is unknown.
        ValueError: dpo without a reference.
    """
    if config.task.name != "dpo":
        return _TASKS[config.task.name](config, shape)
    if reference is None:
        raise ValueError("preference optimisation needs the model that training began with")
    return DPO(shape.vocab_size, config.task.beta, reference, nll_weight=config.task.nll_weight)
