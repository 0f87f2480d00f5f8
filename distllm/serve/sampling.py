"""Drawing the next token of one request.

Shapes: V ids of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distllm.seeds import derive_seed

_COLDEST = 1e-4  # below it logits divided by the temperature leave the range of numbers


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a request wants its tokens drawn.

    Attributes:
        max_tokens: longest answer.
        temperature: 0, or nearly so, takes the likeliest token.
        top_p: sample among the likeliest tokens that together reach this probability only.
        seed: root of its random stream; equal requests get equal answers, whoever else is served.
        stop: texts before which the answer ends.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop: Sequence[str] = ()


def draw(logits_V: Tensor, sampling: Sampling, position: int) -> int:
    """Draw the id at ``position`` of an answer, counted from 0."""
    if sampling.temperature < _COLDEST:
        return int(logits_V.argmax())
    sorted_V, ids_V = (logits_V.double() / sampling.temperature).sort(descending=True, stable=True)
    probs_V = sorted_V.softmax(dim=0)
    if sampling.top_p < 1.0:
        # An id stays if those before it have not reached the mass: the likeliest always does.
        probs_V[1:][probs_V.cumsum(dim=0)[:-1] >= sampling.top_p] = 0.0
    generator = torch.Generator().manual_seed(derive_seed(sampling.seed, "sample", position))
    return int(ids_V[torch.multinomial(probs_V.cpu(), 1, generator=generator)])
