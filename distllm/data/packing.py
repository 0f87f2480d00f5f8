"""How the ids of a source become rows of seq_len inputs: windows of the stream, or whole documents.

- ``window``: row k holds the ids at k * seq_len of the source's stream. Nothing is padded; documents
  are cut where rows end; the tail that does not fill a row is not used.
- ``greedy``: documents in their order; a new row where the next one does not fit.
- ``best_fit``: the longest first, each into the fullest row that still holds it ("Fewer Truncations
  Improve Language Modeling", arXiv:2404.10830).
- ``single``: each document has a row of its own.

The last three lay out each shard separately. The rest of a row is padding without loss. A document longer
than a row is cut into full rows and a rest, so every id of the split is an input exactly once per
epoch, and its target is the id after it: at a document's end that is EOT, which opens the next. With
``single`` a document may have only one row, so ``too_long`` decides what happens to the rest.

Shapes: B rows asked for, D documents, K shards, P pieces of documents, R runs of ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distllm.errors import DataError

Packing: TypeAlias = Literal["window", "greedy", "best_fit", "single"]
TooLong: TypeAlias = Literal["fail", "drop", "cut"]


@dataclass(frozen=True, slots=True)
class Runs:
    """Stretches of ids that fill rows: row, first column, shard, first id in the shard, and length."""

    row_R: NDArray[np.int64]
    column_R: NDArray[np.int64]
    shard_R: NDArray[np.int64]
    start_R: NDArray[np.int64]
    length_R: NDArray[np.int64]


class Layout(Protocol):
    """The rows of one source.

    Attributes:
        samples: how many rows begin in each shard.
        pads: whether a row may be shorter than seq_len.
        tokens: inputs of all rows, without padding.
    """

    samples: tuple[int, ...]
    pads: bool
    tokens: int

    def runs(self, sample_B: NDArray[np.int64]) -> Runs:
        """Return what fills the rows ``sample_B``; row b of the result is ``sample_B[b]``."""

    def holding(self, shard: int, start: int, stop: int) -> list[int]:
        """Return the rows that have one of the ids ``start`` to ``stop`` of a shard, ascending.

        They have it as an input or as a target. ``start`` is not the first id of the shard.
        """


class WindowLayout:
    """Windows of the stream of all shards of a source, one after the other.

    Args:
        tokens: ids of each shard.
        seq_len: inputs of a row.
    """

    pads = False

    def __init__(self, tokens: Sequence[int], seq_len: int) -> None:
        self._seq_len = seq_len
        self._sizes_K = np.array(tokens, dtype=np.int64)
        ends_K = np.cumsum(self._sizes_K)
        self._starts_K = ends_K - self._sizes_K
        total = max(0, sum(tokens) - 1) // seq_len  # the last input of a row needs a target
        first_K = np.minimum(-(-self._starts_K // seq_len), total)
        self.samples: tuple[int, ...] = tuple(np.diff(first_K, append=total).tolist())
        self.tokens = total * seq_len

    def runs(self, sample_B: NDArray[np.int64]) -> Runs:
        """See ``Layout``."""
        row, start = np.arange(sample_B.size), sample_B * self._seq_len
        column, left = np.zeros_like(sample_B), np.full_like(sample_B, self._seq_len)
        parts = []
        while row.size:
            shard = np.searchsorted(self._starts_K, start, side="right") - 1
            offset = start - self._starts_K[shard]
            length = np.minimum(left, self._sizes_K[shard] - offset)
            parts.append((row, column, shard, offset, length))
            more = left > length
            row, start, column, left = (
                row[more],
                (start + length)[more],
                (column + length)[more],
                (left - length)[more],
            )
        return Runs(*parts[0]) if len(parts) == 1 else Runs(*map(np.concatenate, zip(*parts, strict=True)))

    def holding(self, shard: int, start: int, stop: int) -> list[int]:
        """See ``Layout``."""
        before = int(self._starts_K[shard]) - 1  # the input whose target is the first id
        first, last = (before + start) // self._seq_len, (before + stop) // self._seq_len
        return list(range(first, min(sum(self.samples), last + 1)))


class DocumentLayout:
    """Rows of whole documents. Takes 16 bytes of memory per document, and 8 per row.

    Args:
        ends: for each shard, where its documents end.
        seq_len: inputs of a row.
        packing: ``"greedy"``, ``"best_fit"`` or ``"single"``.
        too_long: for ``"single"``: what to do with a document that is longer than a row.

    Raises:
        DataError: there is such a document, and the policy is ``"fail"``.
    """

    pads = True

    def __init__(
        self,
        ends: Iterable[NDArray[np.int64]],
        seq_len: int,
        packing: Packing,
        too_long: TooLong = "fail",
    ) -> None:
        none = np.zeros(0, dtype=np.int64)
        starts, lengths, pieces_of_rows, samples = [none], [none], [none], list[int]()
        for ends_D in ends:
            cut = _pieces if packing != "single" else partial(_singles, too_long)
            start_P, length_P = cut(ends_D, seq_len)
            if packing == "single":
                row_P = np.arange(length_P.size)
            elif packing == "best_fit":
                order_P, row_P = _best_fit(length_P, seq_len)
                start_P, length_P = start_P[order_P], length_P[order_P]
            else:
                row_P = _next_fit(length_P, seq_len)
            rows = int(row_P[-1]) + 1 if row_P.size else 0
            starts.append(start_P)
            lengths.append(length_P)
            pieces_of_rows.append(np.bincount(row_P, minlength=rows))
            samples.append(rows)
        self.samples: tuple[int, ...] = tuple(samples)
        self._start_P = np.concatenate(starts)
        self._before_P = _offsets(lengths)
        self.tokens = int(self._before_P[-1])
        self._first = _offsets(pieces_of_rows)  # piece of each row
        self._ends_K = np.cumsum(samples, dtype=np.int64)

    def runs(self, sample_B: NDArray[np.int64]) -> Runs:
        """See ``Layout``."""
        first_B = self._first[sample_B]
        count_B = self._first[sample_B + 1] - first_B
        piece_R = ranges(first_B, count_B)
        row_R = np.repeat(np.arange(sample_B.size), count_B)
        return Runs(
            row_R=row_R,
            column_R=self._before_P[piece_R] - self._before_P[first_B][row_R],
            shard_R=np.searchsorted(self._ends_K, sample_B, side="right")[row_R],
            start_R=self._start_P[piece_R],
            length_R=self._before_P[piece_R + 1] - self._before_P[piece_R],
        )

    def holding(self, shard: int, start: int, stop: int) -> list[int]:
        """See ``Layout``."""
        last_row = int(self._ends_K[shard])
        low, high = self._first[[last_row - self.samples[shard], last_row]].tolist()
        start_P = self._start_P[low:high]
        target_P = start_P + np.diff(self._before_P[low : high + 1])  # the last target of each piece
        piece_P = low + np.flatnonzero((start_P < stop) & (target_P >= start))
        rows: list[int] = np.unique(self._first.searchsorted(piece_P, side="right") - 1).tolist()
        return rows


def ranges(first_R: NDArray[np.int64], count_R: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``first_R[0], first_R[0] + 1, …``, ``count_R[0]`` of them, then those of the next."""
    before_R = np.cumsum(count_R) - count_R
    return np.repeat(first_R - before_R, count_R) + np.arange(int(count_R.sum()))


def _offsets(counts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate(counts))])


def _pieces(ends_D: NDArray[np.int64], seq_len: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut the documents of a shard into pieces of at most ``seq_len``; return start and length of each."""
    length_D = np.diff(ends_D, prepend=0)
    count_D = -(-length_D // seq_len)
    cut_P = ranges(np.zeros_like(count_D), count_D) * seq_len
    start_P = np.repeat(ends_D - length_D, count_D) + cut_P
    return start_P, np.minimum(seq_len, np.repeat(length_D, count_D) - cut_P)


def _singles(
    too_long: TooLong, ends_D: NDArray[np.int64], seq_len: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return start and length of the documents of a shard, none longer than ``seq_len``."""
    length_D = np.diff(ends_D, prepend=0)
    start_D, long_D = ends_D - length_D, length_D > seq_len
    if too_long == "fail" and long_D.any():
        raise DataError(
            f"{int(long_D.sum())} of {length_D.size} documents are longer than a row of {seq_len}, "
            f"the longest has {int(length_D.max())} ids",
            where="data.seq_len",
            remedy="set a larger one, or data.too_long=cut, or data.too_long=drop",
        )
    if too_long == "drop":
        return start_D[~long_D], length_D[~long_D]
    return start_D, np.minimum(seq_len, length_D)


def _next_fit(length_P: NDArray[np.int64], seq_len: int) -> NDArray[np.int64]:
    """Return the row of each piece, in order."""
    end_P = np.cumsum(length_P)
    row_P = np.zeros(length_P.size, dtype=np.int64)
    piece, row, filled = 0, 0, 0
    while piece < length_P.size:
        stop = int(end_P.searchsorted(filled + seq_len, side="right"))
        row_P[piece:stop] = row
        piece, row, filled = stop, row + 1, int(end_P[stop - 1])
    return row_P


def _best_fit(length_P: NDArray[np.int64], seq_len: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pieces sorted by row, and the row of each.

    The rows that have room for n more ids are ``open_rows[n]``; the bits of ``room`` say for which n
    there are any, so that the fullest row that holds a piece is found by its lowest set bit.
    """
    longest_P = np.argsort(-length_P, kind="stable")
    row_P = np.empty(length_P.size, dtype=np.int64)
    open_rows: list[list[int]] = [[] for _ in range(seq_len + 1)]
    room, rows = 0, 0
    for piece, length in zip(longest_P.tolist(), length_P[longest_P].tolist(), strict=True):
        if fitting := room >> length:
            left = length + (fitting & -fitting).bit_length() - 1
            row = open_rows[left].pop()
            room ^= (not open_rows[left]) << left
        else:
            row, left, rows = rows, seq_len, rows + 1
        row_P[piece] = row
        if left > length:
            open_rows[left - length].append(row)
            room |= 1 << (left - length)
    order_P = longest_P[np.argsort(row_P[longest_P], kind="stable")]
    return order_P, row_P[order_P]
