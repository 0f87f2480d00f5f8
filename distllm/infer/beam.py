"""Beam search: keep the K most likely continuations of a text instead of only the best one.

A finished text is scored by its log-probability divided by its length to the power of
``length_penalty``. Ties, the rules by which a row is done, and the treatment of the longest length
follow transformers, so the tokens are the same.

Shapes: R prompts, K beams, N = R K texts, C = 2 K candidates, V ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

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


class _Candidate(NamedTuple):
    """A text with one token more: of which beam, its score if it ends here, and whether it does."""

    parent: int
    token: int
    score: float
    ends: bool


@dataclass(slots=True)
class _Row:
    """One text's search.

    Attributes:
        running: the texts that still grow, likeliest first.
        finished: scores and finished texts, best first, at most K.
        open: whether a running text may still score better than a finished one.
    """

    running: list[list[int]]
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
        decoding: the prompts, each of which may become ``beams`` rows.
        prompts: their ids, which a repetition penalty counts too.
        search: K beams, and how they are scored.
        vocab_size: V; ids beyond it are never taken.
        eot_id: the id that ends a text.
        rooms: the longest continuation of each prompt, at least one token.
        repetition_penalty: see `distllm.infer.sampling`.
        lockstep: run all ``max(rooms)`` forward passes, because other ranks do.
    """
    beams, count = search.beams, len(prompts)
    rows = [_Row([[] for _ in range(beams)], []) for _ in prompts]
    score_RK = torch.tensor([0.0, *[_NEVER] * (beams - 1)]).repeat(count, 1)
    first_R1 = beams * torch.arange(count)[:, None]
    for length in range(1, max(rooms) + 1):
        log_p_NV = decoding.logits()[:, :vocab_size].log_softmax(dim=1)
        if length == 1:  # one row of each prompt was read: its beams begin alike
            log_p_NV = log_p_NV.repeat_interleave(beams, dim=0)
        if repetition_penalty != 1.0:
            texts = [
                [*prompt, *text] for prompt, row in zip(prompts, rows, strict=True) for text in row.running
            ]
            pairs = zip(log_p_NV, texts, strict=True)
            log_p_NV = torch.stack([penalised(each, text, repetition_penalty) for each, text in pairs])
        total_RKV = log_p_NV.view(count, beams, -1) + score_RK[:, :, None]
        total_RC, place_RC = total_RKV.flatten(1).topk(2 * beams)
        parent_RC, token_RC = place_RC // log_p_NV.shape[1], place_RC % log_p_NV.shape[1]
        end_RC = (token_RC == eot_id) | torch.tensor([[length == room] for room in rooms])
        score_RK, kept_RK = (total_RC + end_RC * _NEVER).topk(beams)
        columns = (parent_RC, token_RC, total_RC / length**search.length_penalty, end_RC)
        by_row = zip(*(column.tolist() for column in columns), strict=True)
        candidates = [list(map(_Candidate, *row)) for row in by_row]
        likeliest = score_RK[:, 0].tolist()
        for number, row in enumerate(rows):
            _end(row, candidates[number], search, eot_id)
            _grow(row, [candidates[number][place] for place in kept_RK[number].tolist()])
            row.open = row.open and _may_improve(row, search, likeliest[number], rooms[number])
        if not lockstep and not any(row.open for row in rows):
            break
        source_RK = first_R1 + parent_RC.gather(1, kept_RK)
        grown_from_N = source_RK.flatten() // (beams if length == 1 else 1)
        decoding.append(token_RC.gather(1, kept_RK).flatten(), grown_from_N)
    return [row.finished[0][1] for row in rows]


def _end(row: _Row, candidates: Sequence[_Candidate], search: Search, eot_id: int) -> None:
    """Keep the texts that end here among the best: only the K likeliest candidates may."""
    if not row.open:
        return
    for parent, token, score, ends in candidates[: search.beams]:
        if ends:
            row.finished.append((score, [*row.running[parent], *([token] if token != eot_id else [])]))
    row.finished = sorted(row.finished, key=lambda item: -item[0])[: search.beams]


def _grow(row: _Row, kept: Sequence[_Candidate]) -> None:
    """Let the texts grow that were kept."""
    row.running = [[*row.running[parent], token] for parent, token, _, _ in kept]


def _may_improve(row: _Row, search: Search, likeliest: float, room: int) -> bool:
    """Return whether a running text, of which the best has this log-probability, may become the best."""
    length = len(row.running[0])
    if length == room:
        return False
    if len(row.finished) < search.beams:
        return True
    return search.early_stopping is not True and search.bound(likeliest, length, room) > row.finished[-1][0]
