"""The protocol of engines, which hold and update the weights for any kind of parallelism.

For every micro-batch of a step, the loop computes a loss with ``engine.model`` and passes it to
``engine.backward``. After the last one it calls ``engine.step``, which asks the caller whether a gradient of
that norm may be applied. Gradients are *summed* over micro-batches and ranks (the loop divides each loss by
the global target weight), so any division of the same samples gives the same update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from distllm.errors import CheckpointError

Accept = Callable[[float], bool]
MOMENTS = ("exp_avg", "exp_avg_sq")
CLIP_EPSILON = 1e-6
"""What torch and DeepSpeed add to the norm when they clip."""
Slots = Mapping[str, Mapping[str, torch.Size]]
Owner = Callable[[torch.Size], int]
"""Returns the rank that gets a tensor of this shape; called for each tensor in the same order on every rank."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of one optimizer step.

    ``grad_norm`` is the global L2 norm before clipping. ``skipped`` means that the norm was not accepted: no
    weight and no moment changed on any rank.
    """

    grad_norm: float
    skipped: bool


class Engine(Protocol):
    """Weights, gradients and optimizer of one model over all ranks.

    Attributes:
        by_row: whether each call of `backward` gets one row, with the mean loss of its targets, because the
            engine treats rows separately instead of summing them.
    """

    by_row: bool

    @property
    def model(self) -> nn.Module:
        """The module to call for every forward pass, in training and in evaluation."""

    @property
    def optimizer_steps(self) -> int:
        """Updates applied so far; skipped steps do not count."""

    def expect(self, micro_batches: int, first_sample: int = 0) -> None:
        """Set the number of `backward` calls of the next step; initially ``grad_accum_steps``.

        Args:
            micro_batches: number of calls.
            first_sample: the global position of this rank's first sample.
        """

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar loss; called once for each micro-batch of a step."""

    def step(self, lr: float, accept: Accept = math.isfinite, elsewhere: float = 0.0) -> StepResult:
        """Clip, update all weights at learning rate ``lr`` if ``accept`` agrees, and clear the gradients.

        Args:
            lr: the learning rate of this update; a group of parameters multiplies it by its ``lr_scale``.
            accept: whether a gradient of this global norm, before clipping, may be applied. It must refuse
                norms that are not finite, and give the same answer on every rank. It is not called if the
                engine itself finds a gradient that is not finite.
            elsewhere: norm of gradients that another engine applies together with these; it is part of the
                global norm.
        """

    def replicas(self) -> Iterator[Tensor]:
        """Yield the weights that every rank holds in full, as forward and backward use them.

        Yields nothing if the weights are partitioned (stage 3). The tensors are not copies.
        """

    def state(self, owner: Owner | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield logical tensors: full, fp32, on the CPU, copies, in a fixed order. Collective.

        Names are ``model/<parameter>`` and ``optim/<slot>/<parameter>``, for AdamW ``optim/exp_avg/``
        and ``optim/exp_avg_sq/``; they and their shapes depend on the model and the optimizer only,
        not on the engine or the number of ranks.

        Args:
            owner: which rank gets which tensor; the others send their parts and allocate nothing. None: every
                rank gets every tensor. All ranks must exhaust the iterator.
        """

    def load_state(self, read: Callable[[str], Tensor], optimizer_steps: int) -> None:
        """Set weights and moments from the tensors ``read`` returns by logical name. Collective.

        Raises:
            CheckpointError: a tensor's shape is not that of this model.
        """


def logical_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the model's trainable parameters by name, each shared parameter once.

    Frozen ones are not part of the training state: the code that builds the model sets them, also on a resume.

    Raises:
        ValueError: the model has persistent buffers, which no engine saves, or no trainable parameter.
    """
    saved = model.state_dict(keep_vars=True)
    buffers = [name for name, _ in model.named_buffers() if name in saved]
    if buffers:
        raise ValueError(f"persistent buffers {buffers} are not supported")
    learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not learning:
        raise ValueError("all parameters are frozen")
    return learning


def slots_of(optimizer: torch.optim.Optimizer | None, weight: Tensor) -> Mapping[str, torch.Size]:
    """Return the slots (state tensors) of ``optimizer`` for a weight, with shapes; by default Adam's moments."""
    own = getattr(optimizer, "slots", None)
    return dict.fromkeys(MOMENTS, weight.shape) if own is None else own(weight)


def all_slots(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> Slots:
    """Return the slots of every parameter by name; must be called before an engine partitions parameters."""
    return {name: slots_of(optimizer, parameter) for name, parameter in parameters.items()}


def state_names(slots: Slots) -> Iterator[tuple[str, str, str | None]]:
    """Yield (logical name, parameter name, slot or None for the weight) in the order of `Engine.state`."""
    for parameter in slots:
        yield f"model/{parameter}", parameter, None
    for slot in dict.fromkeys(slot for held in slots.values() for slot in held):
        for parameter, held in slots.items():
            if slot in held:
                yield f"optim/{slot}/{parameter}", parameter, slot


def read_checked(read: Callable[[str], Tensor], name: str, shape: torch.Size) -> Tensor:
    """Read the logical tensor ``name`` and check its shape.

    Raises:
        CheckpointError: the shape is different.
    """
    tensor = read(name)
    if tensor.shape != shape:
        raise CheckpointError(
            f"{name} has shape {tuple(tensor.shape)} in the checkpoint and {tuple(shape)} in this model",
            remedy="resume with the model configuration the checkpoint was trained with",
        )
    return tensor


def allocate_moments(
    optimizer: torch.optim.Optimizer, weight: Tensor, place: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Allocate the optimizer state of ``weight`` now, as zeros, instead of at the first step.

    So a lack of memory shows early, and the state can be read and loaded before the first step. ``place`` may
    replace each tensor of zeros by another one.
    """
    group = optimizer.param_groups[0]
    on_device = bool(group.get("fused") or group.get("capturable"))
    step_device = weight.device if on_device else torch.device("cpu")
    state = optimizer.state[weight]
    state["step"] = torch.zeros((), dtype=torch.float32, device=step_device)
    for slot, shape in slots_of(optimizer, weight).items():
        precise = torch.promote_types(weight.dtype, torch.float32)
        moment = torch.zeros(shape, dtype=precise, device=weight.device)
        state[slot] = moment if place is None else place(moment)
