"""Where each ZeRO stage stores the fp32 weights and moments of a parameter, and how to access them.

- Stage 0: whole on every rank; a second fp32 copy beside the model only if it computes in bf16.
- Stages 1 and 2: per parameter group one flat fp32 buffer, cut into one partition per rank; a
  parameter may straddle two partitions or share one; the end is padded with zeros.
- Stage 3: each parameter is cut into equal padded parts, one per rank; a rank's parts lie one
  after another in flat buffers.

DeepSpeed's per-parameter accessors are used wherever they work correctly. All methods are collective.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import deepspeed
import torch
from deepspeed import utils as accessors
from torch import Tensor, nn

from distllm.dist.collectives import gather_over_ranks
from distllm.dist.engine import allocate_moments
from distllm.dist.mapped import MappedFiles
from distllm.dist.parts import Part, bring_together
from distllm.dist.topology import Topology


class ZeroState(Protocol):
    """fp32 weights and moments of one ZeRO stage, by parameter name."""

    def masters(self) -> list[Tensor]:
        """Return the fp32 tensors that this rank's optimizer updates."""

    def full(self, parameter: str, moment: str | None) -> Tensor:
        """Assemble a whole fp32 weight (``moment`` None) or moment, on every rank."""

    def full_on(self, owner: int, parameter: str, moment: str | None) -> Tensor | None:
        """Assemble it on rank ``owner`` alone; None on the others, which allocate nothing."""

    def assign(self, parameter: str, moment: str | None, value: Tensor) -> None:
        """Store this rank's share of a whole weight or moment."""

    def publish(self) -> None:
        """Update the weights that the model computes with from the fp32 ones."""


def zero_state(
    engine: Any,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    topology: Topology,
    files: MappedFiles | None = None,
) -> ZeroState:
    """Return the state of a DeepSpeed engine's stage, with moments allocated and all zero.

    Args:
        engine: the DeepSpeedEngine.
        optimizer: the AdamW it was given.
        parameters: the model's parameters by logical name.
        topology: this rank's place; all ranks partition one state.
        files: where to move fp32 weights and moments that DeepSpeed has offloaded to main memory.
    """
    stage = engine.zero_optimization_stage()
    state: ZeroState
    if stage == 0:
        state = _Replicated(engine, optimizer, parameters, topology)
    elif stage == 3:
        state = _PartitionedParameters(engine, parameters, topology)
    else:
        state = _PartitionedBuffers(engine, parameters, topology)
    if files is not None:
        for master in state.masters():
            master.data = files.moved(master.data)
        if isinstance(state, _PartitionedBuffers):
            engine.optimizer._link_all_hp_params()  # parameters still refer to the replaced tensors
    for master in state.masters():
        allocate_moments(optimizer, master, files.moved if files else None)
    if isinstance(state, _PartitionedBuffers):
        # DeepSpeed links parameters to their moments after its first update; the tensors exist now.
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    return state


class _Replicated:
    """Stage 0."""

    def __init__(
        self,
        engine: Any,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, nn.Parameter],
        topology: Topology,
    ) -> None:
        self._rank = topology.rank
        self._optimizer = optimizer
        self._weights = parameters
        self._masters: dict[str, Tensor] = dict(parameters)
        if engine.optimizer is not optimizer:
            self._use_copies(engine.optimizer)

    def _use_copies(self, wrapper: Any) -> None:
        """Find the fp32 copies of bf16 weights, and undo the update that DeepSpeed has applied to them.

        DeepSpeed's wrapper calls the optimizer once with zero gradients to allocate its state, which applies
        weight decay to the copies and shifts AdamW's bias correction by a step. The copies are restored here,
        the moments and their step counts by `zero_state`.
        """
        copies = {
            id(weight): copy
            for weights, group in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
            for weight, copy in zip(weights, group, strict=True)
        }
        self._masters = {name: copies[id(weight)] for name, weight in self._weights.items()}
        with torch.no_grad():
            for name, weight in self._weights.items():
                self._masters[name].copy_(weight)

    def masters(self) -> list[Tensor]:
        return list(self._masters.values())

    def full(self, parameter: str, moment: str | None) -> Tensor:
        master = self._masters[parameter]
        if moment is None:
            return master
        tensor: Tensor = self._optimizer.state[master][moment]
        return tensor

    def full_on(self, owner: int, parameter: str, moment: str | None) -> Tensor | None:
        return self.full(parameter, moment) if owner == self._rank else None

    def assign(self, parameter: str, moment: str | None, value: Tensor) -> None:
        self.full(parameter, moment).copy_(value)

    def publish(self) -> None:
        for name, weight in self._weights.items():
            weight.copy_(self._masters[name])


class _PartitionedBuffers:
    """Stages 1 and 2."""

    def __init__(self, engine: Any, parameters: Mapping[str, nn.Parameter], topology: Topology) -> None:
        self._zero = engine.optimizer
        self._parameters = parameters
        self._topology = topology
        self._parts = self._layout()

    def _layout(self) -> dict[str, list[Part]]:
        """Return which ranks hold which elements of each parameter; DeepSpeed lets a rank see only its own."""
        own = [number for weight in self._parameters.values() for number in _held(weight)]
        parts: dict[str, list[Part]] = {name: [] for name in self._parameters}
        for rank, numbers in enumerate(gather_over_ranks(own, self._topology)):
            for name, start, stop in zip(parts, numbers[::2], numbers[1::2], strict=True):
                if stop > start:
                    parts[name].append(Part(rank, int(start), int(stop)))
        return parts

    def masters(self) -> list[Tensor]:
        return list(self._zero.single_partition_of_fp32_groups)

    def full(self, parameter: str, moment: str | None) -> Tensor:
        return _assemble(self._parameters[parameter], moment)

    def full_on(self, owner: int, parameter: str, moment: str | None) -> Tensor | None:
        weight: Any = self._parameters[parameter]
        own = None if weight._hp_mapping is None else weight._hp_mapping.get_hp_fragment(moment)
        parts, place = self._parts[parameter], self._topology
        flat = bring_together(own, parts, rank=place.rank, owner=owner, device=place.device)
        return None if flat is None else flat.view(weight.shape)

    def assign(self, parameter: str, moment: str | None, value: Tensor) -> None:
        weight = self._parameters[parameter]
        if moment is None:
            accessors.safe_set_full_fp32_param(weight, value)
        else:
            accessors.safe_set_full_optimizer_state(weight, value, moment)

    def publish(self) -> None:
        self._zero.update_lp_params()


class _PartitionedParameters:
    """Stage 3."""

    def __init__(self, engine: Any, parameters: Mapping[str, nn.Parameter], topology: Topology) -> None:
        self._zero = engine.optimizer
        self._parameters = parameters
        self._topology = topology

    def masters(self) -> list[Tensor]:
        return list(self._zero.fp32_partitioned_groups_flat)

    def full(self, parameter: str, moment: str | None) -> Tensor:
        return _assemble(self._parameters[parameter], moment)

    def full_on(self, owner: int, parameter: str, moment: str | None) -> Tensor | None:
        weight: Any = self._parameters[parameter]
        place, size = self._topology, weight.ds_tensor.numel()
        starts = range(0, weight.ds_numel, size)  # the last ranks may hold nothing but padding
        parts = [Part(rank, at, min(at + size, weight.ds_numel)) for rank, at in enumerate(starts)]
        own = None
        if place.rank < len(parts):
            own = _own_part(weight, moment)[: parts[place.rank].stop - parts[place.rank].start]
        flat = bring_together(own, parts, rank=place.rank, owner=owner, device=place.device)
        return None if flat is None else flat.view(weight.ds_shape)

    def assign(self, parameter: str, moment: str | None, value: Tensor) -> None:
        weight: Any = self._parameters[parameter]
        # DeepSpeed's accessor for whole values reads past the end if the last part is padded.
        part = torch.zeros(weight.ds_tensor.numel(), dtype=torch.float32)
        rank = self._topology.rank
        own = value.reshape(-1)[rank * part.numel() : (rank + 1) * part.numel()]
        part[: own.numel()] = own
        if moment is None:
            accessors.safe_set_local_fp32_param(weight, part)
        else:
            accessors.safe_set_local_optimizer_state(weight, part, moment)

    def publish(self) -> None:
        for weight in self._parameters.values():
            full = _assemble(weight, None)
            with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
                weight.copy_(full)


def _assemble(weight: nn.Parameter, moment: str | None) -> Tensor:
    full: Tensor
    if moment is None:
        full = accessors.safe_get_full_fp32_param(weight)
    else:
        full = accessors.safe_get_full_optimizer_state(weight, moment)
    return full


def _own_part(weight: nn.Parameter, moment: str | None) -> Tensor:
    """Return this rank's part of a parameter of stage 3, padded to the size of all parts."""
    part: Tensor
    if moment is None:
        part = accessors.safe_get_local_fp32_param(weight)
    else:
        part = accessors.safe_get_local_optimizer_state(weight, moment)
    return part


def _held(weight: Any) -> tuple[int, int]:
    """Return the elements [start, stop) of a flat parameter that this rank holds under stage 1 or 2."""
    if weight._hp_mapping is None:
        return 0, 0
    address = weight._hp_mapping.lp_fragment_address
    return address.start, address.start + address.numel
