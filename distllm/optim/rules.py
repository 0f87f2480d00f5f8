"""Update rules that torch does not have, and the names and shapes of their state for a weight.

``slots`` says which tensors belong in a checkpoint. An element-wise rule has slots of the weight's shape and
can update any part of a weight, as ZeRO requires.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

Slots = Mapping[str, torch.Size]
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MATRIX_RMS = 0.2


def slot_of(state: dict[str, Any], name: str, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the slot ``name`` of a weight's state; it is allocated, as zeros, at the first call only."""
    if name not in state:
        state[name] = torch.zeros_like(weight, dtype=dtype)
    slot: Tensor = state[name]
    return slot


class Sgd(torch.optim.SGD):
    """Gradient descent with momentum."""

    def slots(self, weight: Tensor) -> Slots:
        """Return the momentum, unless there is none."""
        return {"momentum_buffer": weight.shape} if self.defaults["momentum"] else {}


class Lion(torch.optim.Optimizer):
    """The sign of an interpolation of gradient and momentum ("Symbolic Discovery of Optimization
    Algorithms", arXiv:2302.06675), with decoupled weight decay.

    Args:
        params: weights or groups of them.
        lr: the rate; a third to a tenth of AdamW's.
        betas: of the interpolation, and of the momentum.
        weight_decay: decay, scaled by the rate.
    """

    def __init__(
        self, params: ParamsT, *, lr: float, betas: tuple[float, float], weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def slots(self, weight: Tensor) -> Slots:
        """Return the momentum."""
        return {"exp_avg": weight.shape}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            first, second = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = slot_of(self.state[weight], "exp_avg", weight)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                direction = torch.lerp(weight.grad, momentum, first).sign_()
                weight.add_(direction, alpha=-group["lr"])
                momentum.lerp_(weight.grad, 1 - second)


class Adafactor(torch.optim.Adafactor):
    """Second moments by row and column (Shazeer & Stern 2018), at the rate of the schedule."""

    def slots(self, weight: Tensor) -> Slots:
        """Return the factors of a matrix, or the second moment of a vector."""
        if weight.ndim < 2:
            return {"variance": weight.shape}
        rows, columns = list(weight.shape), list(weight.shape)
        rows[-1], columns[-2] = 1, 1
        return {"row_var": torch.Size(rows), "col_var": torch.Size(columns)}


class MuonWithAdamW(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices (Jordan et al. 2024), AdamW for everything else.

    An update of a matrix is scaled to the root mean square of AdamW's updates, so that one learning rate
    works for both ("Muon is Scalable for LLM Training", arXiv:2502.16982). Matrices that are stored in one
    tensor, by rows or by experts, are updated separately.

    Args:
        params: groups, each with ``weight_decay`` and ``rows`` of the matrices in each weight, None where
            weights hold none.
        lr: the rate.
        momentum: decay of a matrix's momentum (Nesterov).
        betas: of AdamW.
        eps: of AdamW.
    """

    def __init__(
        self, params: ParamsT, *, lr: float, momentum: float, betas: tuple[float, float], eps: float
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": 0.0}
        super().__init__(params, defaults)
        groups = [group for group in self.param_groups if group["rows"]]
        self._matrices = {id(weight) for group in groups for weight in group["params"]}

    def slots(self, weight: Tensor) -> Slots:
        """Return the momentum of a matrix, or AdamW's moments."""
        if id(weight) in self._matrices:
            return {"momentum_buffer": weight.shape}
        return {"exp_avg": weight.shape, "exp_avg_sq": weight.shape}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._muon if group["rows"] else self._adamw
                weight.add_(update(weight, group), alpha=-group["lr"])

    def _muon(self, weight: Tensor, group: Mapping[str, Any]) -> Tensor:
        momentum, gradient = slot_of(self.state[weight], "momentum_buffer", weight), weight.grad
        assert gradient is not None
        momentum.lerp_(gradient, 1 - group["momentum"])
        ahead = torch.lerp(gradient, momentum, group["momentum"])
        parts = torch.split(ahead, group["rows"], dim=-2)
        return torch.cat(
            [orthogonalized(part) * _MATRIX_RMS * max(part.shape[-2:]) ** 0.5 for part in parts], -2
        )

    def _adamw(self, weight: Tensor, group: Mapping[str, Any]) -> Tensor:
        state, (first, second), gradient = self.state[weight], group["betas"], weight.grad
        assert gradient is not None
        mean, square = (slot_of(state, name, weight) for name in ("exp_avg", "exp_avg_sq"))
        steps = state.setdefault("step", torch.zeros((), dtype=torch.float32))
        steps += 1
        mean.lerp_(gradient, 1 - first)
        square.lerp_(gradient * gradient, 1 - second)
        root = (square / (1 - second ** float(steps))).sqrt_().add_(group["eps"])
        update: Tensor = mean / (1 - first ** float(steps)) / root
        return update


def orthogonalized(matrix_MN: Tensor) -> Tensor:
    """Return approximately the nearest matrix with all singular values 1, by five Newton-Schulz steps.

    Dimensions before M and N are batch dimensions.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrix_MN.shape[-2] > matrix_MN.shape[-1]
    x_MN = matrix_MN.mT if tall else matrix_MN
    x_MN = x_MN / x_MN.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(_ITERATIONS):
        gram_MM = x_MN @ x_MN.mT
        x_MN = a * x_MN + (b * gram_MM + c * gram_MM @ gram_MM) @ x_MN
    result_MN: Tensor = x_MN.mT if tall else x_MN
    return result_MN
