"""Choosing the next token of one text from its logits.

Shapes: V ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_COLDEST = 1e-4  # below it, logits divided by the temperature overflow


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn; filters apply in this order, as in transformers.

    Attributes:
        repetition_penalty: factor by which ids that occur in the text become less likely (Keskar et al.
            2019); 1 changes nothing.
        temperature: divides the logits; below 0.0001 the likeliest token is taken.
        top_k: draw only among the k likeliest.
        top_p: draw only among the likeliest that together reach this probability (Holtzman et al. 2020).
        min_p: draw only among ids at least this fraction as likely as the likeliest (Nguyen et al. 2024).
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None


GREEDY = Sampling()


def penalised(logits_V: Tensor, past: Sequence[int], penalty: float) -> Tensor:
    """Return logits in which the ids of ``past`` are less likely."""
    if penalty == 1.0:
        return logits_V
    seen = torch.tensor(sorted({token for token in past if token < len(logits_V)}), dtype=torch.int64)
    values = logits_V[seen]
    return logits_V.index_copy(0, seen, torch.where(values < 0, values * penalty, values / penalty))


def draw(logits_V: Tensor, past: Sequence[int], sampling: Sampling, seed: int) -> int:
    """Draw one id; equal arguments give equal ids."""
    logits_V = penalised(logits_V, past, sampling.repetition_penalty)
    if sampling.temperature < _COLDEST:
        return int(logits_V.argmax())
    sorted_V, ids_V = (logits_V / sampling.temperature).sort(descending=True, stable=True)
    probs_V = sorted_V[: sampling.top_k].softmax(dim=0)
    if sampling.top_p is not None:
        # An id stays if those before it have not reached the mass: the likeliest always does.
        probs_V[1:][probs_V.cumsum(dim=0)[:-1] >= sampling.top_p] = 0.0
    if sampling.min_p is not None:
        probs_V[probs_V < sampling.min_p * probs_V[0]] = 0.0
    generator = torch.Generator().manual_seed(seed)
    return int(ids_V[torch.multinomial(probs_V, 1, generator=generator)])
