"""Direct preference optimisation: raise the probability of the preferred answer relative to the rejected one.

"Direct Preference Optimization: Your Language Model is Secretly a Reward Model" (arXiv:2305.18290); on
request with the preferred answer's own loss: "Iterative Reasoning Preference Optimization"
(arXiv:2404.19733), equation 1.

Shapes: B rows, T positions, P pairs, G segments of all rows: preferred and rejected answers alternate, then
padding.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from distllm.data.batch import IGNORE_INDEX, Batch
from distllm.tasks.base import Task, check_vocabulary, device_of, to_device
from distllm.tasks.segments import segment_numbers, segment_sum


class DPO(Task):
    """-log sigmoid(beta * (gain of the preferred answer - gain of the rejected one)).

    The gain of an answer is its log-probability under the model minus that under the reference. The loss of a
    pair can include the negative log-likelihood of the preferred answer, as a mean over its tokens: without
    it, the loss can fall while both answers become less likely.

    Args:
        vocab_size: number of ids the model knows.
        beta: how strongly the model is kept close to the reference.
        reference: a frozen copy of the model that training began with.
        nll_weight: factor of the preferred answer's negative log-likelihood.
    """

    unit = "pair"
    reads_text = False

    def __init__(
        self, vocab_size: int, beta: float, reference: nn.Module, *, nll_weight: float = 0.0
    ) -> None:
        self.vocab_size, self.beta, self.nll_weight = vocab_size, beta, nll_weight
        self._reference = reference.eval().requires_grad_(False)

    def weight(self, batch: Batch) -> int:
        """Return the number of pairs."""
        return _preferred(batch)[0].size

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss summed over the pairs.

        Raises:
            DataError: the batch holds an id that the model does not know.
        """
        check_vocabulary(batch, self.vocab_size)
        own_P2, reference_P2 = self.log_p(model, batch)
        gain_P2 = own_P2 - reference_P2
        loss = -logsigmoid(self.beta * (gain_P2[:, 0] - gain_P2[:, 1])).sum()
        if self.nll_weight:
            sizes_P = torch.from_numpy(_preferred(batch)[1]).to(own_P2)
            loss = loss - self.nll_weight * (own_P2[:, 0] / sizes_P).sum()
        return loss

    def log_p(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of each pair's preferred and rejected answer: own_P2 and reference_P2.

        The former are the model's; those of the reference have no gradient.
        """
        device = device_of(model)
        self._reference.to(device)
        with torch.no_grad():
            known_G = _answer_log_p(self._reference, batch, device)
        own_G = _answer_log_p(model, batch, device)
        preferred_P = torch.from_numpy(_preferred(batch)[0]).to(device)
        own_P2, reference_P2 = (
            torch.stack([log_p_G[preferred_P], log_p_G[preferred_P + 1]], dim=-1)
            for log_p_G in (own_G, known_G)
        )
        return own_P2, reference_P2


def _answer_log_p(model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
    """Return the log-probability of each segment's targets, log_p_G, in fp32."""
    segments_BT = to_device(batch.segments_BT, device)
    logits_BTV: Tensor = model(
        to_device(batch.tokens_BT, device), to_device(batch.positions_BT, device), segments_BT
    )
    targets_BT = to_device(batch.targets_BT, device).long()
    scored_BT = targets_BT != IGNORE_INDEX
    target_BT1 = targets_BT.masked_fill(~scored_BT, 0)[..., None]
    logits_BTV = logits_BTV.float()
    log_p_BT = logits_BTV.gather(-1, target_BT1)[..., 0] - logits_BTV.logsumexp(-1)
    number_BT, count = segment_numbers(segments_BT)
    return segment_sum(log_p_BT.masked_fill(~scored_BT, 0.0), number_BT, count)


def _preferred(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the preferred answers, even segments with targets, and their target counts."""
    width = int(batch.segments_BT.max()) + 1
    number_BT = batch.segments_BT + np.arange(batch.segments_BT.shape[0])[:, None] * width
    scored_BT = batch.targets_BT != IGNORE_INDEX
    sizes_G = np.bincount(number_BT[scored_BT], minlength=batch.segments_BT.shape[0] * width)
    preferred_P = np.flatnonzero((sizes_G > 0) & (np.arange(sizes_G.size) % width % 2 == 0))
    return preferred_P, sizes_G[preferred_P]
