"""Beam search: keep the K likeliest continuations of a text instead of the likeliest token.

A finished text is scored by its log-probability divided by its length to the power of
``length_penalty``. Ties, the rules by which a row is done, and the treatment of the longest length
follow transformers, so the tokens are the same.

Shapes: R rows, K beams, C = 2 K candidates, V ids, n tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distllm.infer.decoding import Decoding
from distllm.infer.sampling import penalised

_NEVER = -1e9
EarlyStopping = Literal[True, False, "never"]


@dataclass(frozen=True, slots=True)
class Search:
    """How a text is searched for.

    Attributes:
        beams: texts kept for each prompt; 1 means no search: tokens are drawn one by one.
        length_penalty: above 0 favours long texts, below 0 short ones.
        early_stopping: when a row with as many finished texts as beams is done: at once (True); when no
            running text would score better if it ended now (False); or when none can ever score better
            ("never").
    """

    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False

    def bound(self, total: float, length: int, room: int) -> float:
        """Return the best score that a running text of ``length`` tokens is expected to reach."""
        longest = self.early_stopping == "never" and self.length_penalty > 0.0
        scale: float = (room if longest else length) ** self.length_penalty
        return total / scale


NO_SEARCH = Search()


@dataclass(slots=True)
class _Row:
    """One text's search.

    Attributes:
        running: the texts that still grow, likeliest first.
        scores_K: their log-probabilities.
        finished: scores and finished texts, best first, at most K.
        open: whether a running text may still score better than a finished one.
    """

    running: list[list[int]]
    scores_K: Tensor
    finished: list[tuple[float, list[int]]]
    open: bool = True


def beam_search(
    decoding: Decoding,
    prompts: Sequence[Sequence[int]],
    *,
    search: Search,
    vocab_size: int,
    eot_id: int,
    rooms: Sequence[int],
    repetition_penalty: float = 1.0,
    lockstep: bool = False,
) -> list[list[int]]:
    """Return the best continuation of each prompt, without the end of text.

    Args:
        decoding: ``beams`` rows for each prompt, one prompt after another.
        prompts: their ids, which a repetition penalty counts too.
        search: K beams, and how they are scored.
        vocab_size: V; ids beyond it are never taken.
        eot_id: the id that ends a text.
        rooms: the longest continuation of each prompt, at least one token.
        repetition_penalty: see `distllm.infer.sampling`.
        lockstep: run all ``max(rooms)`` forward passes, because other ranks do.
    """
    beams = search.beams
    start_K = torch.tensor([0.0, *[_NEVER] * (beams - 1)])
    rows = [_Row([[] for _ in range(beams)], start_K.clone(), []) for _ in prompts]
    for _ in range(max(rooms)):
        logits = decoding.logits()[:, :vocab_size].float().log_softmax(dim=-1)
        sources, tokens = [], []
        for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            log_p_KV = logits[number * beams : (number + 1) * beams]
            if repetition_penalty != 1.0:
                texts = [[*prompt, *text] for text in row.running]
                log_p_KV = torch.stack(
                    [penalised(p, t, repetition_penalty) for p, t in zip(log_p_KV, texts, strict=True)]
                )
            parents = _advance(row, log_p_KV, search, eot_id, rooms[number])
            sources += [number * beams + parent for parent in parents]
            tokens += [text[-1] for text in row.running]
        if not lockstep and not any(row.open for row in rows):
            break
        decoding.append(tokens, torch.tensor(sources))
    return [row.finished[0][1] for row in rows]


def _advance(row: _Row, log_p_KV: Tensor, search: Search, eot_id: int, room: int) -> list[int]:
    """Take the best candidates of one row; return the beam that each running text continues."""
    beams, vocab_size = search.beams, log_p_KV.shape[1]
    total_C, place_C = (log_p_KV + row.scores_K[:, None]).flatten().topk(2 * beams)
    parents = (place_C // vocab_size).tolist()
    texts = [
        [*row.running[parent], token]
        for parent, token in zip(parents, (place_C % vocab_size).tolist(), strict=True)
    ]
    length = len(texts[0])
    last = length == room
    ends_C = torch.tensor([last or text[-1] == eot_id for text in texts])
    if row.open:
        scored = total_C / length**search.length_penalty
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
    full = len(row.finished) == beams
    if last or (full and search.early_stopping is True):
        row.open = False
    elif full:
        row.open = row.open and search.bound(float(row.scores_K[0]), length, room) > row.finished[-1][0]
    return [parents[index] for index in kept]
