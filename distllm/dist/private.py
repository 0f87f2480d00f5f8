"""The plain engine with differential privacy: each row's gradient is clipped, and noise is added to the sum.

"Deep Learning with Differential Privacy" (arXiv:1607.00133), with the optimizer of Opacus. The module wrapper of
Opacus computes gradients per row with hooks on known layers, and does not support tied weights, fused losses and
packed projections. Here each micro-batch is one row, so autograd gives its gradient for any model, at the
price of one backward pass per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distllm.dist.local import LocalEngine
from distllm.dist.topology import Topology
from distllm.extras import require
from distllm.seeds import derive_seed


class PrivateEngine(LocalEngine):
    """A `LocalEngine` in which every call of `backward` is one row, with the mean loss of its targets.

    Rank 0 adds the noise, which is a function of ``key`` and the samples of the step: a step that is taken again
    gets the same noise, on any number of ranks, and a step with other samples gets other noise.

    Args:
        model, optimizer, settings, topology: see `LocalEngine`.
        noise: standard deviation of the noise, in units of ``clip``.
        clip: largest norm of a row's gradient.
        rows: rows of a step; the sum is divided by this number.
        key: the secret seed of the noise.

    Raises:
        MissingDependency: opacus is not installed.
    """

    by_row = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: Mapping[str, Any],
        topology: Topology,
        *,
        noise: float,
        clip: float,
        rows: int,
        key: int,
    ) -> None:
        super().__init__(model, optimizer, settings, topology)
        optimizers = require("opacus.optimizers", "training with optim.private", "privacy")
        self._key, self._first_sample = key, 0
        self._generator = torch.Generator(topology.device)
        self._mechanism: Any = optimizers.DPOptimizer(
            optimizer,
            # The gradients of all ranks are summed after the noise of one of them.
            noise_multiplier=noise if topology.is_main else 0.0,
            max_grad_norm=clip,
            expected_batch_size=rows,
            generator=self._generator,
            secure_mode=True,
        )

    def expect(self, micro_batches: int, first_sample: int = 0) -> None:
        """Remember the sample with which the step begins."""
        self._first_sample = first_sample

    def backward(self, loss: Tensor) -> None:
        """Add the clipped gradient of one row's loss."""
        super().backward(loss)
        for weight in self._weights():
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            weight.grad_sample, weight.grad = gradient[None], None
        self._mechanism.clip_and_accumulate()

    def _gradients(self) -> list[Tensor]:
        """Return this rank's part of the noisy mean, and clear the gradients of rows."""
        self._generator.manual_seed(derive_seed(self._key, "noise", self._first_sample))
        self._mechanism.add_noise()
        self._mechanism.scale_grad()
        for weight in self._weights():
            weight.grad_sample = weight.summed_grad = None
        return super()._gradients()

    def _weights(self) -> list[Any]:
        """Return the weights, to which Opacus adds attributes."""
        return list(self._parameters.values())
