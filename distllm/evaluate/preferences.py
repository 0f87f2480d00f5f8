"""How well a model separates the preferred answer from the other one, before and after training.

Shapes: P pairs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from distllm.data.batch import Split
from distllm.tasks.dpo import DPO


@torch.no_grad()
def measure_preferences(task: DPO, model: nn.Module, split: Split, *, limit: int | None) -> dict[str, float]:
    """Score ``model``, in evaluation mode, on the first rows of a split that hold ``limit`` pairs.

    Returns:
        ``preferred``: the share of pairs whose preferred answer is likelier than the other;
        ``preferred_by_reference``: the same for the model that training began with;
        ``reward_accuracy``: the share of pairs whose preferred answer gained more likelihood in training;
        ``reward_margin``: the mean difference of the two gains, times ``task.beta``.
    """
    own, known, pairs = [], [], 0
    for row in range(split.num_samples):
        batch = split.batch(np.array([row]), np.array([row]))
        own_P2, reference_P2 = task.log_p(model, batch)
        own.append(own_P2)
        known.append(reference_P2)
        pairs += own_P2.shape[0]
        if limit is not None and pairs >= limit:
            break
    better_P, before_P = (log_p_P2[:, 0] - log_p_P2[:, 1] for log_p_P2 in (torch.cat(own), torch.cat(known)))
    return {
        "preferred": _share(better_P),
        "preferred_by_reference": _share(before_P),
        "reward_accuracy": _share(better_P - before_P),
        "reward_margin": task.beta * float((better_P - before_P).mean()),
    }


def _share(margin_P: torch.Tensor) -> float:
    return float((margin_P > 0).double().mean())
