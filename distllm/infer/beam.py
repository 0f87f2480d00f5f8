"""Beam search: keeping the likeliest continuations of a text, not the likeliest token.

Texts that end are scored by their log-probability over their length to the power of
``length_penalty``. Ties, the bound at which a row is done, and what happens at the longest length
are those of transformers, so that the tokens are the same.

Shapes: R rows, K beams, C = 2 K candidates, V ids, n tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distllm.infer.decoding import Decoding
from distllm.infer.sampling import penalised

_NEVER = -1e9


@dataclass(slots=True)
class _Row:
    """One text's search.

    Attributes:
        running: the texts that still grow, likeliest first.
        scores_K: their log-probabilities.
        finished: ended texts and their scores, best first, at most K.
        open: whether a running text may still become better than a finished one.
    """

    running: list[list[int]]
    scores_K: Tensor
    finished: list[tuple[float, list[int]]]
    open: bool = True


def beam_search(
    decoding: Decoding,
    prompts: Sequence[Sequence[int]],
    *,
    beams: int,
    vocab_size: int,
    eot_id: int,
    rooms: Sequence[int],
    length_penalty: float = 1.0,
    repetition_penalty: float = 1.0,
    lockstep: bool = False,
) -> list[list[int]]:
    """Return the best continuation of each prompt, without the end of text.

    Args:
        decoding: rows under way, ``beams`` for each prompt, one prompt after another.
        prompts: the ids that a repetition is counted from.
        beams: K.
        vocab_size: V; ids beyond it are never taken.
        eot_id: the id that ends a text.
        rooms: the longest continuation of each prompt, at least one token.
        length_penalty: above 0 favours long texts, below 0 short ones.
        repetition_penalty: see `distllm.infer.sampling`.
        lockstep: run all forward passes, because other ranks do.
    """
    start_K = torch.tensor([0.0, *[_NEVER] * (beams - 1)])
    rows = [_Row([[] for _ in range(beams)], start_K.clone(), []) for _ in prompts]
    for step in range(max(rooms)):
        logits = decoding.logits()[:, :vocab_size].float().log_softmax(dim=-1)
        sources, tokens = [], []
        for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            log_p_KV = logits[number * beams : (number + 1) * beams]
            if repetition_penalty != 1.0:
                texts = [[*prompt, *text] for text in row.running]
                log_p_KV = torch.stack(
                    [penalised(p, t, repetition_penalty) for p, t in zip(log_p_KV, texts, strict=True)]
                )
            last = step + 1 == rooms[number]
            parents = _advance(row, log_p_KV, beams, eot_id, length_penalty, last=last)
            sources += [number * beams + parent for parent in parents]
            tokens += [text[-1] for text in row.running]
        if not lockstep and not any(row.open for row in rows):
            break
        decoding.append(tokens, torch.tensor(sources))
    return [row.finished[0][1] for row in rows]


def _advance(
    row: _Row, log_p_KV: Tensor, beams: int, eot_id: int, length_penalty: float, *, last: bool
) -> list[int]:
    """Take the best candidates of one row; return the beam that each running text goes on from."""
    vocab_size = log_p_KV.shape[1]
    total_C, place_C = (log_p_KV + row.scores_K[:, None]).flatten().topk(2 * beams)
    parents = (place_C // vocab_size).tolist()
    texts = [
        [*row.running[parent], token]
        for parent, token in zip(parents, (place_C % vocab_size).tolist(), strict=True)
    ]
    ends_C = torch.tensor([last or text[-1] == eot_id for text in texts])
    length = len(texts[0])
    if row.open:
        scored = total_C / length**length_penalty
        ended = [
            (float(scored[index]), texts[index][:-1] if texts[index][-1] == eot_id else texts[index])
            for index in range(beams)
            if ends_C[index]
        ]
        row.finished = sorted([*row.finished, *ended], key=lambda item: -item[0])[:beams]
    running_C = total_C + ends_C * _NEVER
    row.scores_K, kept_K = running_C.topk(beams)
    kept = kept_K.tolist()
    row.running = [texts[index] for index in kept]
    best = float(row.scores_K[0]) / length**length_penalty
    full = len(row.finished) == beams
    row.open = row.open and not last and (not full or best > row.finished[-1][0])
    return [parents[index] for index in kept]
