"""Objectives that hide part of a plain text: masked tokens, and spans behind sentinels.

What is hidden follows only from the seed and the row's position in the run. So a row is corrupted in
the same way on any rank, and a sample in another way in the next epoch.

Shapes: B rows, T positions, V ids of the vocabulary, P positions of one segment, K spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from distllm.data.batch import IGNORE_INDEX, Batch, Source
from distllm.data.examples.split import laid_out
from distllm.seeds import derive_seed

_KEPT, _RANDOM = 0.1, 0.1
_SHORTEST = 16
"""Texts with fewer ids have no spans: too little would be left to predict them from."""


class Masking:
    """Masked-language-model targets (Devlin et al. 2019): of the ids chosen, 80 % become the mask id,
    10 % a random id, and 10 % stay.

    Args:
        seed: root of the choices.
        fraction: share of the ids to be chosen.
        mask_id: replaces a hidden id.
        eot_id: never chosen, and never replaces another id.
        word_starts_V: for each id whether it begins a word, to choose whole words; None chooses ids.
        vocab_size: V.
    """

    def __init__(
        self,
        *,
        seed: int,
        fraction: float,
        mask_id: int,
        eot_id: int,
        word_starts_V: NDArray[np.bool_] | None,
        vocab_size: int,
    ) -> None:
        self._seed, self._fraction = seed, fraction
        self._mask_id, self._eot_id = mask_id, eot_id
        self._word_starts_V, self._vocab_size = word_starts_V, vocab_size

    def __call__(self, batch: Batch) -> Batch:
        """Hide tokens of every row; the targets are what was hidden, at its place."""
        tokens_BT = batch.tokens_BT.copy()
        targets_BT = np.full_like(tokens_BT, IGNORE_INDEX)
        # A row without any target is damaged or forgotten.
        for row in np.flatnonzero((batch.targets_BT != IGNORE_INDEX).any(axis=1)).tolist():
            numbers = np.random.default_rng(derive_seed(self._seed, "mask", int(batch.sample_ids_B[row])))
            ids_T = batch.tokens_BT[row]
            chosen_T = self._choose(ids_T, batch.segments_BT[row], numbers)
            fate_T = numbers.random(ids_T.size)
            others_T = numbers.integers(0, self._vocab_size, ids_T.size)
            targets_BT[row, chosen_T] = ids_T[chosen_T]
            tokens_BT[row, chosen_T & (fate_T >= _KEPT + _RANDOM)] = self._mask_id
            random_T = chosen_T & (fate_T < _RANDOM) & (others_T != self._eot_id)
            tokens_BT[row, random_T] = others_T[random_T]
        return replace(batch, tokens_BT=tokens_BT, targets_BT=targets_BT)

    def _choose(
        self, ids_T: NDArray[np.int32], segments_T: NDArray[np.int32], numbers: np.random.Generator
    ) -> NDArray[np.bool_]:
        if self._word_starts_V is None:
            word_T = np.arange(ids_T.size)
        else:
            # A word is named by its first position, so it does not depend on words of other documents.
            starts_T = self._word_starts_V[ids_T] | (np.diff(segments_T, prepend=-1) != 0)
            word_T = np.maximum.accumulate(np.where(starts_T, np.arange(ids_T.size), 0))
        drawn_T: NDArray[np.bool_] = numbers.random(ids_T.size)[word_T] < self._fraction
        chosen_T: NDArray[np.bool_] = drawn_T & (ids_T != self._eot_id)
        return chosen_T


class SpanCorruption:
    """T5's objective (Raffel et al. 2020): sentinels replace spans, and the target gives the spans.

    Every document of a row, or tail of one, is corrupted separately: the source is its text with
    spans replaced, and EOT; the target is each sentinel with its span, and EOT. A row of P ids needs
    a source of at most P + 2 ids.

    Args:
        seed: root of the choices.
        fraction: share of the ids in spans.
        mean_span: mean length of a span.
        sentinel_ids: the sentinels in their order.
        eot_id: opens documents, and ends sources and targets.
        row_len: ids of a row before corruption.

    Attributes:
        width: T, positions of the targets.
    """

    def __init__(
        self,
        *,
        seed: int,
        fraction: float,
        mean_span: float,
        sentinel_ids: Sequence[int],
        eot_id: int,
        row_len: int,
    ) -> None:
        self._seed, self._fraction, self._mean_span = seed, fraction, mean_span
        self._sentinel_K = np.array(sentinel_ids, dtype=np.int32)
        self._eot_id = eot_id
        self._source_len = row_len + 2
        lengths = np.arange(_SHORTEST, max(_SHORTEST, row_len) + 1)
        densest = max(sum(self._counts(int(length))) / length + 1 / length for length in lengths)
        self.width = int(np.ceil(densest * row_len)) + 1

    def __call__(self, batch: Batch) -> Batch:
        """Turn rows of text into sources and targets."""
        sources, tokens, targets = [], [], []
        eot = np.array([self._eot_id], dtype=np.int32)
        for row, sample in enumerate(batch.sample_ids_B.tolist()):
            numbers = np.random.default_rng(derive_seed(self._seed, "spans", sample))
            parts = _texts(batch, row, self._eot_id)
            pairs = [self._corrupt(ids_P, numbers) for ids_P in parts if ids_P.size >= _SHORTEST]
            sources.append([np.concatenate([left, eot]) for left, _ in pairs])
            tokens.append([np.concatenate([eot, hidden]) for _, hidden in pairs])
            targets.append([np.concatenate([hidden, eot]) for _, hidden in pairs])
        tokens_BT, positions_BT, segments_BT = laid_out(tokens, self.width, self._eot_id)
        return Batch(
            tokens_BT,
            laid_out(targets, self.width, IGNORE_INDEX)[0],
            positions_BT,
            segments_BT,
            batch.sample_ids_B,
            Source(*laid_out(sources, self._source_len, self._eot_id)),
        )

    def _counts(self, length: int) -> tuple[int, int]:
        """Return how many of ``length`` ids are hidden, and in how many spans."""
        hidden = min(max(1, round(length * self._fraction)), length - 1)
        spans = min(max(1, round(hidden / self._mean_span)), hidden, length - hidden, self._sentinel_K.size)
        return hidden, spans

    def _corrupt(
        self, ids_P: NDArray[np.int32], numbers: np.random.Generator
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return what is left of a text, and what was hidden, each with its sentinels."""
        hidden, spans = self._counts(ids_P.size)
        kept_K = _parts_of(ids_P.size - hidden, spans, numbers)
        gone_K = _parts_of(hidden, spans, numbers)
        borders = np.cumsum(np.stack([kept_K, gone_K], axis=1).ravel())
        stretches = np.split(ids_P, borders[:-1])
        marks = np.split(self._sentinel_K[:spans], spans)
        source = [piece for kept, mark in zip(stretches[::2], marks, strict=True) for piece in (kept, mark)]
        target = [piece for mark, gone in zip(marks, stretches[1::2], strict=True) for piece in (mark, gone)]
        return np.concatenate(source), np.concatenate(target)


def _parts_of(total: int, parts: int, numbers: np.random.Generator) -> NDArray[np.int64]:
    """Return ``parts`` positive numbers with this sum, all such choices being equally likely."""
    cuts = np.sort(numbers.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def _texts(batch: Batch, row: int, eot_id: int) -> list[NDArray[np.int32]]:
    """Return the documents of a row without their EOT; nothing of a row without loss."""
    if (batch.targets_BT[row] == IGNORE_INDEX).all():
        return []
    borders = np.flatnonzero(np.diff(batch.segments_BT[row])) + 1
    return [ids_P[ids_P != eot_id] for ids_P in np.split(batch.tokens_BT[row], borders)]
