"""DeepSpeed ZeRO 0 to 3 behind the engine protocol.

DeepSpeed stores, partitions and reduces; distllm decides when a step ends, its learning rate, and what a
gradient means. Three defaults of DeepSpeed are changed here:

- It averages gradients over ranks and accumulation steps. distllm sums them, so the loss is multiplied by the
  number of ranks and not divided by the steps.
- It skips an update only after an overflow. Here the caller's ``accept`` decides.
- Its process groups ignore the timeout of the default group. They get it here.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn

from distllm.dist.collectives import rank_errors
from distllm.dist.engine import (
    CLIP_EPSILON,
    Accept,
    Owner,
    StepResult,
    all_slots,
    logical_parameters,
    read_checked,
    state_names,
)
from distllm.dist.mapped import MappedFiles
from distllm.dist.topology import Topology

if TYPE_CHECKING:
    from distllm.dist.zero_norm import NormGate


class ZeroEngine:
    """A model under DeepSpeed.

    Args:
        model: full fp32 weights on the rank's device; DeepSpeed partitions or casts them in place.
        optimizer: an optimizer over all parameters of ``model``, preferably ``fused=True``.
        settings: the document of `config.engine.deepspeed_json`.
        topology: this rank's place; its process group must exist.
        timeout_seconds: longest wait for another rank.
        offload_dir: directory of the files for offloaded state; None: it stays in main memory.
    """

    by_row = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: Mapping[str, Any],
        topology: Topology,
        timeout_seconds: float,
        offload_dir: Path | None = None,
    ) -> None:
        self._topology = topology
        self._optimizer = optimizer
        self._parameters = logical_parameters(model)
        self._shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        self._slots = all_slots(optimizer, self._parameters)
        self._grad_accum_steps = int(settings["gradient_accumulation_steps"])
        self._stage = int(settings["zero_optimization"]["stage"])
        self._grad_clip = float(settings["gradient_clipping"])
        self._micro_steps = 0
        self._optimizer_steps = 0
        deepspeed = _import_deepspeed(topology)
        with _group_timeout(timeout_seconds), rank_errors(topology, "partitioning the model"):
            self._engine = deepspeed.initialize(model=model, optimizer=optimizer, config=dict(settings))[0]
        from distllm.dist.zero_norm import NormGate
        from distllm.dist.zero_state import zero_state

        self._gate = NormGate(self._engine.optimizer, self._stage) if self._stage else None
        files = MappedFiles(offload_dir) if offload_dir else None
        self._state = zero_state(self._engine, optimizer, self._parameters, topology, files)

    @property
    def model(self) -> nn.Module:
        """The DeepSpeedEngine, which gathers partitioned weights in its forward pass."""
        module: nn.Module = self._engine
        return module

    @property
    def optimizer_steps(self) -> int:
        """Updates applied so far."""
        return self._optimizer_steps

    def expect(self, micro_batches: int, first_sample: int = 0) -> None:
        """Reduce over ranks with the last of ``micro_batches``.

        Raises:
            ValueError: the previous step was begun but not taken.
        """
        if self._micro_steps:
            raise ValueError(f"{self._micro_steps} micro-batches of a step were not followed by the step")
        self._grad_accum_steps = micro_batches

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``; the last micro-batch of a step also reduces over ranks."""
        self._micro_steps += 1
        self._engine.set_gradient_accumulation_boundary(self._micro_steps == self._grad_accum_steps)
        with rank_errors(self._topology, "reducing gradients"):
            self._engine.backward(loss * self._topology.world_size, scale_wrt_gas=False)

    def step(self, lr: float, accept: Accept = math.isfinite, elsewhere: float = 0.0) -> StepResult:
        """Clip and update; if the gradient is not accepted, nothing changes.

        Raises:
            ValueError: `backward` was not called ``gradient_accumulation_steps`` times.
        """
        if self._micro_steps != self._grad_accum_steps:
            raise ValueError(f"{self._micro_steps} backward calls instead of {self._grad_accum_steps}")
        self._micro_steps = 0
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        with rank_errors(self._topology, "updating weights"):
            if self._gate is None:
                result = self._whole_step(accept, elsewhere)
            else:
                result = self._gated_step(self._gate, accept, elsewhere)
        self._optimizer_steps += not result.skipped
        return result

    def _gated_step(self, gate: NormGate, accept: Accept, elsewhere: float) -> StepResult:
        """Let DeepSpeed reduce and update, and refuse through the norm that it checks (`NormGate`)."""
        with gate.asking(accept, elsewhere):
            self._engine.step()
        skipped = not self._engine.was_step_applied()
        if skipped and self._stage < 3:
            # DeepSpeed does not clear offloaded gradients when it drops an update in bf16.
            averaged = self._engine.optimizer.averaged_gradients
            averaged.update(dict.fromkeys(averaged))
        return StepResult(gate.grad_norm, skipped)

    def _whole_step(self, accept: Accept, elsewhere: float) -> StepResult:
        """Stage 0: compute the norm of the gradients, which are whole and reduced on every rank, then update."""
        gradients = [weight.grad for weight in self._parameters.values() if weight.grad is not None]
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        own_norm = float(torch.linalg.vector_norm(torch.stack(norms)))
        grad_norm = math.hypot(own_norm, elsewhere)
        skipped = not accept(grad_norm)
        if skipped:
            self._engine.zero_grad()
        else:
            if elsewhere and 0 < self._grad_clip < grad_norm:
                # DeepSpeed would clip by the norm of its own gradients only, so they are clipped before.
                for gradient in gradients:
                    gradient.mul_(self._grad_clip / (grad_norm + CLIP_EPSILON))
            self._engine.step()
        return StepResult(grad_norm, skipped)

    def replicas(self) -> Iterator[Tensor]:
        """Yield all weights, unless they are partitioned."""
        if self._stage < 3:
            yield from self._engine.module.parameters()

    def state(self, owner: Owner | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield weights, then moments, assembled one at a time: on every rank, or each on its owner alone."""
        is_shared = self._stage == 0  # in other stages the assembled tensor is a copy already
        for name, parameter, moment in state_names(self._slots):
            with torch.no_grad(), rank_errors(self._topology, "assembling the state"):
                if owner is None:
                    full: Tensor | None = self._state.full(parameter, moment)
                else:
                    full = self._state.full_on(owner(self._shape(parameter, moment)), parameter, moment)
                whole = None if full is None else full.detach().to("cpu", torch.float32, copy=is_shared)
            if whole is not None:
                yield name, whole

    def load_state(self, read: Callable[[str], Tensor], optimizer_steps: int) -> None:
        """Set weights, moments and step counts; each rank keeps its share."""
        with torch.no_grad(), rank_errors(self._topology, "loading the state"):
            for name, parameter, moment in state_names(self._slots):
                self._state.assign(parameter, moment, read_checked(read, name, self._shape(parameter, moment)))
            for master in self._state.masters():
                self._optimizer.state[master]["step"].fill_(optimizer_steps)
            self._state.publish()
        self._optimizer_steps = optimizer_steps

    def _shape(self, parameter: str, slot: str | None) -> torch.Size:
        return self._shapes[parameter] if slot is None else self._slots[parameter][slot]


def _import_deepspeed(topology: Topology) -> Any:
    """Import DeepSpeed for the rank's device, without its C++ communication extension.

    On a CPU that extension would be compiled for minutes while all ranks wait; gloo is used instead.
    """
    on_gpu = topology.device.type == "cuda"
    os.environ["DS_ACCELERATOR"] = topology.device.type
    # DeepSpeed uses LOCAL_RANK as the index of the device among the visible ones.
    os.environ["LOCAL_RANK"] = str(topology.device.index if on_gpu else topology.local_rank)
    # DeepSpeed still calls collectives by names that torch has deprecated; users cannot change that.
    renamed = r".*torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"
    warnings.filterwarnings("ignore", message=renamed, category=FutureWarning)
    # The loop reports skipped steps itself.
    logging.getLogger("DeepSpeed").addFilter(_is_not_skipped_step)
    import deepspeed

    if not on_gpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _is_not_skipped_step(record: logging.LogRecord) -> bool:
    return "OVERFLOW! Skipping step" not in record.getMessage()


@contextmanager
def _group_timeout(timeout_seconds: float) -> Iterator[None]:
    """Give every process group that is created inside the block this timeout, unless its creator sets one."""
    new_group = torch.distributed.new_group
    torch.distributed.new_group = functools.partial(new_group, timeout=timedelta(seconds=timeout_seconds))
    try:
        yield
    finally:
        torch.distributed.new_group = new_group
