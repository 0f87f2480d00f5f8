"""The model that training began with, for objectives that compare with it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from distllm.config.resolve import Resolved
from distllm.export.adapted import add_adapter
from distllm.export.load import load_weights
from distllm.models.heads import head_of
from distllm.models.init import build_model


def reference_model(resolved: Resolved, dtype: torch.dtype = torch.float32) -> nn.Module | None:
    """Build the frozen copy that preference optimisation needs; None for other tasks.

    It is read from ``model.init_from``, also when a run goes on from a checkpoint: the reference
    never moves. Every rank holds a whole one. Where the model computes in bf16 it has to as well: before
    the first update no answer has gained anything.

    Raises:
        ConfigError, CheckpointError: the folder's weights are no weights of this model.
    """
    config = resolved.config
    if config.task.name != "dpo" or config.model.init_from is None:
        return None
    model = build_model(resolved.shape, config.seed, head=head_of(config.task.name))
    base, adapter = Path(config.model.init_from), config.model.lora.init_from
    load_weights(model, resolved.shape, base)
    if adapter is not None:
        add_adapter(model, resolved.shape, base, Path(adapter))
    return model.to(dtype)
