"""A mixture of experts in place of an MLP: each token is answered by the few that its router prefers.

No token is dropped and no expert has a capacity, so a text's logits do not depend on what else is in
the batch.

Shapes: B rows, T positions, N = B * T tokens, C channels, E experts, k experts of a token, I MLP width,
M tokens of one expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distllm.config.shape import ModelShape
from distllm.ops.mlp import gated


class MixtureOfExperts(nn.Module):
    """Gated MLPs of which each token uses the k likeliest, weighted by their router's softmax.

    Shazeer et al. 2017; Jiang et al. 2024. The experts' matrices are stacked: ``gate_up_proj`` is
    (E, 2 I, C), gate before up, and ``down_proj`` (E, C, I).

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

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Apply to each token the experts it is sent to."""
        x_NC = x_BTC.flatten(0, -2)
        probs_NE = self.router(x_NC).softmax(dim=-1, dtype=torch.promote_types(x_NC.dtype, torch.float32))
        weight_Nk, expert_Nk = probs_NE.topk(self.experts_per_token, dim=-1)
        weight_Nk = (weight_Nk / weight_Nk.sum(dim=-1, keepdim=True)).to(x_NC.dtype)
        if self.training:
            self.imbalance = _imbalance(probs_NE, expert_Nk)
        out_NC = torch.zeros_like(x_NC)
        for expert, (gate_up, down) in enumerate(zip(self.gate_up_proj, self.down_proj, strict=True)):
            token_M, choice_M = torch.where(expert_Nk == expert)
            gate_MI, up_MI = F.linear(x_NC[token_M], gate_up).chunk(2, dim=-1)
            answer_MC = F.linear(gated(gate_MI, up_MI, self.activation), down)
            out_NC = out_NC.index_add(0, token_M, answer_MC * weight_Nk[token_M, choice_M, None])
        return out_NC.view_as(x_BTC)


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
