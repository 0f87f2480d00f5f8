"""A hook into the place where DeepSpeed checks the gradient norm, to apply or skip an update.

ZeRO stages 1 to 3 compute the global norm inside their step and skip the update if it is NaN. The gate replaces
the method that returns the norm: if the caller does not accept a norm it returns NaN, and DeepSpeed clears the
gradients as after an overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.runtime.utils import combine_grad_norm_groups, is_invalid_grad_norm

from distllm.dist.engine import Accept

_REFUSED = math.nan


class NormGate:
    """The hook in one of DeepSpeed's ZeRO optimizers.

    Args:
        optimizer: the optimizer of stage 1, 2 or 3 that DeepSpeed built.
        stage: the ZeRO stage.

    Attributes:
        grad_norm: global L2 norm of the latest step before clipping; inf if DeepSpeed found a gradient that
            is not finite before it computed a norm.
    """

    def __init__(self, optimizer: Any, stage: int) -> None:
        self.grad_norm = math.inf
        self._accept: Accept = math.isfinite
        self._elsewhere = 0.0
        if stage == 3:
            groups: Callable[[], list[Any]] = optimizer._get_norm_groups
            optimizer._get_norm_groups = lambda: self._of_groups(groups())
        else:
            norm: Callable[[], Any] = optimizer.scaled_global_norm
            optimizer.scaled_global_norm = lambda: self._of_norm(norm())

    @contextmanager
    def asking(self, accept: Accept, elsewhere: float = 0.0) -> Iterator[None]:
        """Let ``accept`` decide about the step that is taken inside the block.

        ``elsewhere`` is the norm of gradients outside of DeepSpeed; the norm of all decides and clips.
        """
        self.grad_norm, self._accept, self._elsewhere = math.inf, accept, elsewhere
        try:
            yield
        finally:
            self._accept = math.isfinite

    def _of_groups(self, norms: list[Any]) -> list[Any]:
        combined = combine_grad_norm_groups(norms)
        answer = self._of_norm(combined)
        return norms if answer is combined else [answer]

    def _of_norm(self, norm: Any) -> Any:
        # DeepSpeed writes -1 for a norm that is not finite.
        own = math.inf if is_invalid_grad_norm(norm) else float(norm)
        self.grad_norm = math.hypot(own, self._elsewhere)
        if not self._accept(self.grad_norm):
            return torch.tensor(_REFUSED)
        return norm if self._elsewhere == 0.0 else torch.tensor(self.grad_norm)
