"""AdamW of bf16 weights without an fp32 copy of them: updates are rounded stochastically."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from distllm.kernels.cuda import op, reference
from distllm.optim.rules import slot_of

_FIRST_SEED = 0x0D157


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) on bf16 weights and fp32 moments: 10 bytes a weight, not 14.

    An update smaller than half the spacing of bf16 numbers would be lost by rounding to nearest; rounding
    up or down with the right probability keeps it on average ("Revisiting BFloat16 Training",
    arXiv:2010.06192). The random numbers depend only on step, tensor and element, so replicas agree and a
    resume changes nothing. On a CUDA device one kernel updates all tensors; elsewhere its reference in
    torch does.

    Args:
        params: bf16 weights or groups of them.
        lr: the rate.
        betas: decays of the moments.
        eps: added to the root of the second moment.
        weight_decay: decay, scaled by the rate.
    """

    def __init__(
        self, params: ParamsT, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.dtype != torch.bfloat16:
                    raise ValueError(f"a weight is {weight.dtype}; StochasticAdamW updates bfloat16 weights")
                if weight.device.type == "cuda":
                    op.operators("cuda")  # a missing compiler is reported now, not at the first step

    def slots(self, weight: Tensor) -> Mapping[str, torch.Size]:
        """Return the two moments."""
        return {"exp_avg": weight.shape, "exp_avg_sq": weight.shape}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for index, group in enumerate(self.param_groups):
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                state = self.state[weight]
                for slot in self.slots(weight):
                    slot_of(state, slot, weight, torch.float32)
                state.setdefault("step", torch.zeros((), dtype=torch.float32)).add_(1)
            update = op.adamw if weights[0].device.type == "cuda" else reference.adamw
            update(
                weights,
                [weight.grad.contiguous() for weight in weights],
                [self.state[weight]["exp_avg"] for weight in weights],
                [self.state[weight]["exp_avg_sq"] for weight in weights],
                lr=group["lr"],
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                step=int(self.state[weights[0]]["step"]),
                seed=_FIRST_SEED + index,
            )
