"""A mixture of experts in place of an MLP: a router chooses a few experts for each token.

No token is dropped and no expert has a capacity, so a text's logits do not depend on what else is in
the batch.

Shapes: B rows, T positions, N = B * T tokens, C channels, E experts, k experts of a token, I MLP width,
M = N * k tokens (once for each of their experts), m tokens of one expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distllm.config.shape import ModelShape
from distllm.dist.expert_engine import OwnExperts
from distllm.dist.experts import ExpertGroup
from distllm.ops.mlp import gated

_BLOCK_ROWS = 32


class MixtureOfExperts(nn.Module):
    """Gated MLPs; each token uses the k most likely ones, weighted by the router's softmax.

    Shazeer et al. 2017; Jiang et al. 2024. The experts' matrices are stacked: ``gate_up_proj`` is
    (E, 2 I, C), gate before up, and ``down_proj`` (E, C, I). Where ranks hold different experts
    (`part_experts`), they are stacks of this rank's.

    Attributes:
        imbalance: after a forward pass in training, how unevenly tokens were spread: 1 if evenly
            (Fedus et al. 2022, eq. 4, over k).
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        experts, width = shape.num_experts, shape.hidden_size
        self.activation = shape.activation
        self.experts_per_token = shape.experts_per_token
        self.router = nn.Linear(width, experts, bias=False)
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * shape.intermediate_size, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, shape.intermediate_size))
        self.imbalance: Tensor | None = None
        self.group: ExpertGroup | None = None

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Apply to each token the experts it is sent to."""
        x_NC = x_BTC.flatten(0, -2)
        probs_NE = self.router(x_NC).softmax(dim=-1, dtype=torch.promote_types(x_NC.dtype, torch.float32))
        weight_Nk, expert_Nk = probs_NE.topk(self.experts_per_token, dim=-1)
        weight_Nk = (weight_Nk / weight_Nk.sum(dim=-1, keepdim=True)).to(x_NC.dtype)
        if self.training:
            self.imbalance = _imbalance(probs_NE, expert_Nk)
        order_M = expert_Nk.flatten().argsort(stable=True)
        token_M = order_M // self.experts_per_token
        x_MC = x_NC.index_select(0, token_M)
        counts_E = torch.bincount(expert_Nk.flatten(), minlength=probs_NE.shape[1])
        # A decoding step has no documents beside one another, and is to be fast.
        by_blocks = x_NC.device.type == "cpu" and x_BTC.shape[-2] > 1
        answer = partial(self._answer, rows=_BLOCK_ROWS if by_blocks else None)
        if self.group is None:
            answer_MC = answer(x_MC, counts_E.tolist())
        else:
            answer_MC = self.group.answered(x_MC, counts_E, answer)
        weighted_MC = answer_MC * weight_Nk.flatten().index_select(0, order_M)[:, None]
        return torch.zeros_like(x_NC).index_add(0, token_M, weighted_MC).view_as(x_BTC)

    def _answer(self, x_MC: Tensor, counts: Sequence[int], *, rows: int | None) -> Tensor:
        """Apply each expert of this rank to its tokens, which are sorted by expert.

        The rounding of a product depends on its number of rows, so the last bits of a token's result would
        depend on the tokens of other documents, unless all products have ``rows`` rows.
        """
        answers = []
        parts = torch.split(x_MC, list(counts))
        for x_mC, gate_up, down in zip(parts, self.gate_up_proj, self.down_proj, strict=True):
            block = rows or max(1, len(x_mC))
            padded_nC = F.pad(x_mC, (0, 0, 0, -len(x_mC) % block))
            answered = [self._expert(x_rC, gate_up, down) for x_rC in torch.split(padded_nC, block)]
            answers.append(torch.cat(answered)[: len(x_mC)] if rows else answered[0])
        return torch.cat(answers)

    def _expert(self, x_mC: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        gate_mI, up_mI = F.linear(x_mC, gate_up).chunk(2, dim=-1)
        return F.linear(gated(gate_mI, up_mI, self.activation), down)


def part_experts(model: nn.Module, group: ExpertGroup) -> OwnExperts:
    """Keep only this rank's experts, and send tokens to the ranks of the others, in place.

    The weights are no longer parameters of the model; they are returned by their former names.
    """
    own = {}
    for name, module in model.named_modules():
        if isinstance(module, MixtureOfExperts):
            for kind in ("gate_up_proj", "down_proj"):
                weight_eN = group.own(getattr(module, kind).detach()).clone()
                delattr(module, kind)
                setattr(module, kind, weight_eN)
                own[f"{name}.{kind}"] = weight_eN
            module.group = group
    return OwnExperts(own, group)


def _imbalance(probs_NE: Tensor, expert_Nk: Tensor) -> Tensor:
    """Return E times the sum over experts of their share of tokens and their mean probability."""
    num_experts = probs_NE.shape[1]
    share_E = F.one_hot(expert_Nk.flatten(), num_experts).to(probs_NE.dtype).mean(dim=0)
    return num_experts * (share_E * probs_NE.mean(dim=0)).sum()


def balanced(loss: Tensor, model: nn.Module, shape: ModelShape, targets_BT: Tensor, ignored: int) -> Tensor:
    """Return a summed loss with the mean imbalance of the model's routers added for each target."""
    if not (shape.num_experts and shape.balance_loss and model.training):
        return loss
    found = [module.imbalance for module in model.modules() if isinstance(module, MixtureOfExperts)]
    mean = torch.stack([imbalance for imbalance in found if imbalance is not None]).mean()
    return loss + shape.balance_loss * mean * (targets_BT != ignored).sum()
