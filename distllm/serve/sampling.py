"""Drawing the next token of requests.

Shapes: B requests, V ids of the tokenizer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distllm.infer import sampling as infer
from distllm.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of a request are drawn.

    Attributes:
        max_tokens: longest answer.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: draw only among the likeliest tokens that together reach this probability.
        seed: root of the random stream; an answer does not depend on the other requests.
        stop: texts before which the answer ends.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop: Sequence[str] = ()

    @property
    def how(self) -> infer.Sampling:
        """What does not differ between requests whose tokens can be drawn together."""
        return infer.Sampling(temperature=self.temperature, top_p=self.top_p if self.top_p < 1.0 else None)


def draw_each(logits_BV: Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> list[int]:
    """Draw the next id of each request, at its position of the answer, counted from 0."""
    logits_BV = logits_BV.to("cpu", torch.promote_types(logits_BV.dtype, torch.float32))
    alike: dict[infer.Sampling, list[int]] = defaultdict(list)
    for row, sampling in enumerate(samplings):
        alike[sampling.how].append(row)
    drawn = [0] * len(samplings)
    for how, rows in alike.items():
        seeds = [derive_seed(samplings[row].seed, "sample", positions[row]) for row in rows]
        found = infer.draw_rows(logits_BV[rows], [()] * len(rows), how, seeds)
        for row, token in zip(rows, found, strict=True):
            drawn[row] = token
    return drawn
