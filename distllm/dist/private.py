"""The plain engine with differential privacy: each row's gradient is clipped, and the sum hidden in noise.

"Deep Learning with Differential Privacy" (arXiv:1607.00133), by the optimizer of Opacus. Its module
wrapper, which finds a batch's gradients row by row with hooks on layers that it knows, has no place for
tied weights, fused losses and packed projections; here a micro-batch is one row, whose gradient is what
autograd gives, so every model can learn privately, at the price of one backward pass a row.
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
    """`LocalEngine` whose every call of `backward` is one row, of the mean loss of its targets.

    Rank 0 adds the noise, which is a function of ``key`` and the samples of the step: a step that is
    taken again draws the same, on any number of ranks, and one with other samples another.

    Args:
        model, optimizer, settings, topology: see `LocalEngine`.
        noise: standard deviation of the noise, in units of ``clip``.
        clip: largest norm of a row's gradient.
        rows: rows of a step, by which the sum is divided.
        key: the secret of the noise.

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
        """Note with which sample the step begins."""
        self._first_sample = first_sample

    def backward(self, loss: Tensor) -> None:
        """Add the clipped gradient of one row's loss."""
        super().backward(loss)
        for weight in self._weights():
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            weight.grad_sample, weight.grad = gradient[None], None
        self._mechanism.clip_and_accumulate()

    def _gradients(self) -> list[Tensor]:
        """Return this rank's part of the noisy mean, and forget the rows."""
        self._generator.manual_seed(derive_seed(self._key, "noise", self._first_sample))
        self._mechanism.add_noise()
        self._mechanism.scale_grad()
        for weight in self._weights():
            weight.grad_sample = weight.summed_grad = None
        return super()._gradients()

    def _weights(self) -> list[Any]:
        """Return the weights, which Opacus gives further attributes."""
        return list(self._parameters.values())
