"""An engine for expert parallelism: ranks hold different experts, and another engine holds the other weights.

The other engine never sees the experts, whatever its ZeRO stage. Here their gradients are summed over the ranks
that hold the same experts. Their part of the gradient norm is passed to the other engine, which judges and
clips by the norm of all gradients; the experts are updated if it updates. From stage 1 on, fp32 masters and
moments are divided among the ranks that hold the same experts.

Shapes: E experts, e experts of this rank, N dimensions of one expert's weight, R rows of this rank's share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from distllm.dist.collectives import rank_errors, sum_over_ranks
from distllm.dist.engine import (
    CLIP_EPSILON,
    Accept,
    Engine,
    Owner,
    StepResult,
    all_slots,
    allocate_moments,
    read_checked,
    state_names,
)
from distllm.dist.experts import ExpertGroup
from distllm.dist.parts import Part, bring_together
from distllm.dist.topology import Topology


@dataclass(frozen=True)
class OwnExperts:
    """The weights of this rank's experts, weight_eN by logical name, and the ranks that hold the others."""

    weights: Mapping[str, Tensor]
    group: ExpertGroup


class ExpertEngine:
    """Trains the experts of this rank alongside ``rest``.

    Args:
        rest: the engine of all weights that are not experts.
        weights: the weights of this rank's experts by logical name, weight_eN; they are not parameters of
            the model of ``rest``. They are moved to the rank's device and number format here.
        make_optimizer: builds the optimizer over the parameters of a module.
        settings: the document of `config.engine.deepspeed_json`.
        group: which rank holds which experts.
        topology: this rank's place.
        loss_scale: factor by which ``rest`` multiplies a loss before its backward pass.
    """

    by_row = False

    def __init__(
        self,
        rest: Engine,
        weights: Mapping[str, Tensor],
        make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        settings: Mapping[str, Any],
        group: ExpertGroup,
        topology: Topology,
        loss_scale: float,
    ) -> None:
        self._rest, self._weights, self._group, self._topology = rest, weights, group, topology
        self._loss_scale = loss_scale
        self._grad_clip = float(settings["gradient_clipping"])
        self._shares = group.equal_ranks if settings["zero_optimization"]["stage"] else 1
        compute = torch.bfloat16 if settings["bf16"]["enabled"] else torch.float32
        self._masters: dict[str, nn.Parameter] = {}
        for name, weight in weights.items():
            weight.data = weight.data.to(topology.device)
            self._masters[name] = nn.Parameter(self._share(weight.data).clone())
            weight.data = weight.data.to(compute)
            weight.requires_grad_()
        self._optimizer = make_optimizer(_module_of(self._masters))
        self._slots = all_slots(self._optimizer, self._masters)
        for master in self._masters.values():
            allocate_moments(self._optimizer, master)

    @property
    def model(self) -> nn.Module:
        """The model of the other engine."""
        return self._rest.model

    @property
    def optimizer_steps(self) -> int:
        """Updates applied so far."""
        return self._rest.optimizer_steps

    def expect(self, micro_batches: int, first_sample: int = 0) -> None:
        """Pass it on to the other engine; gradients of experts are summed when the step is taken."""
        self._rest.expect(micro_batches, first_sample)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``, including that of this rank's experts."""
        self._rest.backward(loss)

    def step(self, lr: float, accept: Accept = math.isfinite, elsewhere: float = 0.0) -> StepResult:
        """Sum, clip by the norm of all gradients, and update all weights or none."""
        gradients = self._gradients()
        squares = sum(float(torch.linalg.vector_norm(gradient)) ** 2 for gradient in gradients.values())
        # Without division, every rank that holds the same experts counts them.
        repeated = self._group.equal_ranks // self._shares
        (total,) = sum_over_ranks([squares], self._topology)
        result = self._rest.step(lr, accept, math.hypot(elsewhere, math.sqrt(total / repeated)))
        if not result.skipped:
            self._update(gradients, lr, result.grad_norm)
        for weight in self._weights.values():
            weight.grad = None
        return result

    def _gradients(self) -> dict[str, Tensor]:
        """Return the summed gradient of each master, fp32."""
        found = {}
        for name, weight in self._weights.items():
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            with rank_errors(self._topology, "summing gradients of experts"):
                found[name] = self._summed(gradient).float() / self._loss_scale
        return found

    def _summed(self, gradient_eN: Tensor) -> Tensor:
        group = self._group.equals
        if self._shares == 1:
            torch.distributed.all_reduce(gradient_eN, group=group)
            return gradient_eN
        padded = self._padded(gradient_eN)
        own = padded.new_empty((1, padded.shape[1] // self._shares, padded.shape[2]))
        torch.distributed.reduce_scatter_tensor(own[0], padded[0], group=group)
        return own

    def _update(self, gradients: Mapping[str, Tensor], lr: float, grad_norm: float) -> None:
        factor = min(1.0, self._grad_clip / (grad_norm + CLIP_EPSILON)) if self._grad_clip else 1.0
        for name, master in self._masters.items():
            master.grad = gradients[name].mul_(factor)
        for param_group in self._optimizer.param_groups:
            param_group["lr"] = lr * param_group.get("lr_scale", 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._publish()

    @torch.no_grad()
    def _publish(self) -> None:
        """Update the weights that experts compute with from the masters."""
        with rank_errors(self._topology, "gathering shares of experts"):
            for name, weight in self._weights.items():
                weight.copy_(self._joined(self._masters[name].detach().to(weight.dtype), weight.shape))

    def replicas(self) -> Iterator[Tensor]:
        """Yield the weights that are not experts'."""
        yield from self._rest.replicas()

    def state(self, owner: Owner | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield weights, then moments, each of all experts: experts' weights first, experts' moments last."""
        names = list(state_names(self._slots))
        yield from self._state([name for name in names if name[2] is None], owner)
        yield from self._rest.state(owner)
        yield from self._state([name for name in names if name[2] is not None], owner)

    def _state(
        self, names: list[tuple[str, str, str | None]], owner: Owner | None
    ) -> Iterator[tuple[str, Tensor]]:
        for name, parameter, slot in names:
            full, held = self._full_shape(parameter), self._held(parameter, slot)
            with torch.no_grad(), rank_errors(self._topology, "assembling the state of experts"):
                if owner is None:
                    own_eN = self._joined(held, self._weights[parameter].shape)
                    whole: Tensor | None = self._group.whole(own_eN).to("cpu", torch.float32, copy=True)
                else:
                    whole = self._brought(held, parameter, owner(full))
            if whole is not None:
                yield name, whole.to("cpu").view(full)

    def _brought(self, held: Tensor, parameter: str, owner: int) -> Tensor | None:
        """Return the tensor of all experts on ``owner``, flat; None on the others."""
        rank, parts = self._topology.rank, self._parts(parameter)
        mine = next((part for part in parts if part.rank == rank), None)
        own = None if mine is None else held.flatten()[: mine.stop - mine.start]
        return bring_together(own, parts, rank=rank, owner=owner, device=self._topology.device)

    def _parts(self, parameter: str) -> list[Part]:
        """Return which rank holds which elements of the tensor of all experts, each element once."""
        size, numel = self._group.size, self._weights[parameter].numel()
        share = self._masters[parameter].numel()
        parts = []
        for rank in range(size * self._shares):
            first, begin = rank % size * numel, rank // size * share
            if begin < numel:  # the last shares may hold nothing but padding
                parts.append(Part(rank, first + begin, first + min(begin + share, numel)))
        return parts

    def _full_shape(self, parameter: str) -> torch.Size:
        own_eN = self._weights[parameter]
        return torch.Size((self._group.size * len(own_eN), *own_eN.shape[1:]))

    def load_state(self, read: Callable[[str], Tensor], optimizer_steps: int) -> None:
        """Set weights, moments and step counts; each rank keeps those of its experts."""
        self._rest.load_state(read, optimizer_steps)
        with torch.no_grad():
            for name, parameter, slot in state_names(self._slots):
                value_eN = self._group.own(read_checked(read, name, self._full_shape(parameter)))
                self._held(parameter, slot).copy_(self._share(value_eN))
            for master in self._masters.values():
                self._optimizer.state[master]["step"].fill_(optimizer_steps)
        self._publish()

    def _held(self, parameter: str, slot: str | None) -> Tensor:
        master = self._masters[parameter]
        held: Tensor = master.detach() if slot is None else self._optimizer.state[master][slot]
        return held

    def _share(self, x_eN: Tensor) -> Tensor:
        """Return this rank's share of its experts' tensor: all of it, or some rows of all its experts."""
        if self._shares == 1:
            return x_eN
        return self._padded(x_eN).chunk(self._shares, dim=1)[self._group.equal_rank]

    def _padded(self, x_eN: Tensor) -> Tensor:
        """Return the rows of all experts one after another, padded to equal shares; still three-dimensional."""
        rows = x_eN.flatten(0, 1)
        return nn.functional.pad(rows, (0, 0, 0, -len(rows) % self._shares))[None]

    def _joined(self, share: Tensor, shape: torch.Size) -> Tensor:
        """Return the tensor of this rank's experts, gathered from all ranks that hold the same. Collective."""
        if self._shares == 1:
            return share
        padded = share.new_empty((self._shares * share.shape[1], share.shape[2]))
        torch.distributed.all_gather_into_tensor(padded, share[0].contiguous(), group=self._group.equals)
        return padded[: shape[0] * shape[1]].view(shape)


def _module_of(parameters: Mapping[str, nn.Parameter]) -> nn.Module:
    """Return a module that has these parameters by these names, and nothing else."""
    root = nn.Module()
    for name, parameter in parameters.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, parameter)
    return root
