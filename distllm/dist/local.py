"""The plain-torch engine: the same semantics as the DeepSpeed engine in a page of code, and its test oracle.

Weights, gradients and moments are whole on every rank, in fp32; gradients are summed over ranks in
flat buckets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from distllm.dist.collectives import rank_errors
from distllm.dist.engine import (
    Accept,
    Owner,
    StepResult,
    all_slots,
    allocate_moments,
    logical_parameters,
    read_checked,
    state_names,
)
from distllm.dist.topology import Topology


class LocalEngine:
    """Data parallelism without a framework.

    Args:
        model: fp32 weights on the rank's device, the same on every rank.
        optimizer: an optimizer over all parameters of ``model``.
        settings: the document of `config.engine.deepspeed_json`; clipping and bucket size are read.
        topology: this rank's place.
    """

    by_row = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: Mapping[str, Any],
        topology: Topology,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._topology = topology
        self._grad_clip = float(settings["gradient_clipping"])
        self._bucket_numel = int(settings["zero_optimization"]["reduce_bucket_size"])
        self._parameters = logical_parameters(model)
        self._optimizer_steps = 0
        self._slots = all_slots(optimizer, self._parameters)
        for parameter in self._parameters.values():
            allocate_moments(optimizer, parameter)

    @property
    def model(self) -> nn.Module:
        """The model itself."""
        return self._model

    @property
    def optimizer_steps(self) -> int:
        """Updates applied so far."""
        return self._optimizer_steps

    def expect(self, micro_batches: int, first_sample: int = 0) -> None:
        """Do nothing: gradients are summed when the step is taken."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` to this rank's gradients."""
        torch.autograd.backward(loss)

    def step(self, lr: float, accept: Accept = math.isfinite, elsewhere: float = 0.0) -> StepResult:
        """Sum gradients over ranks, clip, and update; if the gradient is not accepted, nothing changes."""
        gradients = self._gradients()
        if self._topology.world_size > 1:
            with rank_errors(self._topology, "summing gradients"):
                _all_reduce(gradients, self._bucket_numel)
        norm = torch.hypot(get_total_norm(gradients), torch.tensor(elsewhere, device=self._topology.device))
        grad_norm = float(norm)
        skipped = not accept(grad_norm)
        if not skipped:
            if 0 < self._grad_clip < grad_norm:
                clip_grads_with_norm_(self._parameters.values(), self._grad_clip, norm)
            for group in self._optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            self._optimizer.step()
            self._optimizer_steps += 1
        self._optimizer.zero_grad(set_to_none=True)
        return StepResult(grad_norm, skipped)

    def _gradients(self) -> list[Tensor]:
        """Return every parameter's gradient; zeros for a parameter that took no part, the same on all ranks."""
        for parameter in self._parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]

    def replicas(self) -> Iterator[Tensor]:
        """Yield all weights."""
        yield from self._model.parameters()

    def state(self, owner: Owner | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield weights, then moments, by logical name; with ``owner``, those of this rank."""
        for name, parameter, moment in state_names(self._slots):
            tensor = self._tensor(parameter, moment)
            if owner is None or owner(tensor.shape) == self._topology.rank:
                yield name, tensor.detach().to("cpu", torch.float32, copy=True)

    def load_state(self, read: Callable[[str], Tensor], optimizer_steps: int) -> None:
        """Set weights, moments and step counts."""
        with torch.no_grad():
            for name, parameter, moment in state_names(self._slots):
                target = self._tensor(parameter, moment)
                target.copy_(read_checked(read, name, target.shape))
            for parameter_tensor in self._parameters.values():
                self._optimizer.state[parameter_tensor]["step"].fill_(optimizer_steps)
        self._optimizer_steps = optimizer_steps

    def _tensor(self, parameter: str, moment: str | None) -> Tensor:
        weight = self._parameters[parameter]
        if moment is None:
            return weight
        tensor: Tensor = self._optimizer.state[weight][moment]
        return tensor


def _all_reduce(gradients: list[Tensor], bucket_numel: int) -> None:
    """Sum ``gradients`` over ranks in place, in flat buckets of about ``bucket_numel`` elements."""
    for bucket in _buckets(gradients, bucket_numel):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        torch.distributed.all_reduce(flat)
        offset = 0
        for gradient in bucket:
            gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
            offset += gradient.numel()


def _buckets(gradients: list[Tensor], bucket_numel: int) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    filled = 0
    for gradient in gradients:
        if bucket and filled + gradient.numel() > bucket_numel:
            yield bucket
            bucket, filled = [], 0
        bucket.append(gradient)
        filled += gradient.numel()
    if bucket:
        yield bucket
