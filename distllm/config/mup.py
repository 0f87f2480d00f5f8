"""Maximal update parametrisation: what scales with the width, by the name of a weight.

Table 8 of "Tensor Programs V" (arXiv:2203.03466), for Adam-like optimizers, with m the ratio of the width
to that of the base model: for hidden matrices the variance of initial weights and the rate are scaled by
1/m; embeddings, vectors and the output projection keep theirs, and logits are divided by m. For other
outputs (a router, the head of answers) the standard deviation and the rate are scaled by 1/m (Table 3).
"""

from __future__ import annotations

import math
from typing import Literal

_KEPT = ("embed_tokens", "lm_head", "relative")
_OUTPUTS = ("router.weight",)


def role_of(name: str, ndim: int) -> Literal["kept", "hidden", "output"]:
    """Return how a weight scales, by its name and dimensions."""
    if ndim < 2 or any(part in name for part in _KEPT):
        return "kept"
    return "output" if name == "head.weight" or name.endswith(_OUTPUTS) else "hidden"


def std_factor(name: str, ndim: int, width_ratio: float) -> float:
    """Return the factor of a weight's initial standard deviation."""
    factors = {"kept": 1.0, "hidden": math.sqrt(1.0 / width_ratio), "output": 1.0 / width_ratio}
    return factors[role_of(name, ndim)]


def rate_factor(name: str, ndim: int, width_ratio: float) -> float:
    """Return the factor of a weight's learning rate."""
    return 1.0 if role_of(name, ndim) == "kept" else 1.0 / width_ratio
