"""Drawing the next token of one request.

Shapes: V ids of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def draw(logits_V: Tensor, sampling: Sampling, position: int) -> int:
    """Draw the id at ``position`` of an answer, counted from 0."""
    how = infer.Sampling(
        temperature=sampling.temperature, top_p=sampling.top_p if sampling.top_p < 1.0 else None
    )
    return infer.draw(logits_V.cpu().double(), (), how, derive_seed(sampling.seed, "sample", position))
