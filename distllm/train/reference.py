"""The frozen reference model of preference optimisation."""

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
    """Build the reference model of task.name=dpo; None for other tasks.

    It is read from ``model.init_from``, also when a run continues from a checkpoint: the reference never
    changes. Every rank holds a whole copy. It computes in the model's number format: before the first update
    both must give the same probabilities.

    Raises:
        ConfigError, CheckpointError: the folder's weights do not fit this model.
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
