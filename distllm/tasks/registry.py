"""From a configuration to a task."""

from __future__ import annotations

from collections.abc import Callable

from distllm.config.schema import Config
from distllm.config.shape import ModelShape
from distllm.registry import Registry
from distllm.tasks.base import Task
from distllm.tasks.causal_lm import CausalLM

TASKS: Registry[Callable[[Config, ModelShape], Task]] = Registry(
    "task",
    "task.name",
    {
        "causal_lm": lambda config, shape: CausalLM(
            shape.vocab_size, mask_documents=config.data.mask_documents
        )
    },
)


def build_task(config: Config, shape: ModelShape) -> Task:
    """Build the task ``config.task.name`` for a model of ``shape``.

    Raises:
        ConfigError: the name is unknown.
    """
    return TASKS[config.task.name](config, shape)
