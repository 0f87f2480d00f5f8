"""Copying the rows of one source out of its mapped shards, proving every block on the way.

Shapes: B rows of a batch, C rows of this source among them, T = seq_len, R runs, M ids of one shard,
D documents of one shard, K shards, O places in a batch where a segment opens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from distllm.data.mirror import local_shard
from distllm.data.packing import DocumentLayout, Layout, Packing, Runs, TooLong, WindowLayout, ranges
from distllm.data.shards import BlockVerifier, IndexedShard, map_shard
from distllm.data.shards.format import BLOCK_BYTES
from distllm.errors import DataError

OnDamage: TypeAlias = Literal["fail", "skip"]
_TOGETHER = 4
"""From this many rows of one shard on, one gather replaces a slice for each."""


class _OpenShard:
    """A mapped shard and the proof of its ids."""

    def __init__(self, directory: Path, shard: IndexedShard, dtype: np.dtype[Any]) -> None:
        self.ids_M, ends_D = map_shard(directory, shard, dtype)
        self.ends_D: NDArray[np.int64] = ends_D.view("<i8")
        self.verifier = BlockVerifier(directory, shard, dtype)


class SourceRows:
    """The rows of one split of one source. A shard is opened when a row of it is first read.

    Args:
        directory: the dataset.
        name: the source.
        shards: its shards in the split.
        dtype: format of the ids.
        eot_id: the id that opens every document.
        seq_len: inputs of a row.
        packing: see ``distllm.data.packing``.
        on_damage: what a damaged block does: an error, or rows without loss.
        too_long: what becomes of a document longer than the row it has for itself.

    Raises:
        DataError: documents are to be packed, and the list of their ends is damaged, or one is too long.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        shards: Sequence[IndexedShard],
        *,
        dtype: np.dtype[Any],
        eot_id: int,
        seq_len: int,
        packing: Packing,
        on_damage: OnDamage,
        too_long: TooLong = "fail",
    ) -> None:
        self.name = name
        self._directory, self._shards, self._dtype = directory, shards, dtype
        self._eot_id, self._seq_len, self._on_damage = eot_id, seq_len, on_damage
        self._open: dict[int, _OpenShard] = {}
        self._tokens_K = np.array([shard.record.tokens for shard in shards], dtype=np.int64)
        self._block_ids = BLOCK_BYTES // dtype.itemsize
        blocks_K = -(-self._tokens_K // self._block_ids)
        self._block_K = np.cumsum(blocks_K) - blocks_K  # the first of each shard
        self._proven = np.zeros(int(blocks_K.sum()), dtype=bool)
        self.layout: Layout
        if packing == "window":
            self.layout = WindowLayout([shard.record.tokens for shard in shards], seq_len)
        else:
            ends = (self._shard(number).ends_D for number in range(len(shards)))
            self.layout = DocumentLayout(ends, seq_len, packing, too_long)

    def shards_of(self, sample_C: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Return each shard that samples lie in, as the place of its first sample and its number."""
        runs = self.layout.runs(sample_C)
        first_K = np.full(len(self._shards), sample_C.size)
        np.minimum.at(first_K, runs.shard_R, runs.row_R)
        return [(int(first_K[number]), number) for number in np.unique(runs.shard_R).tolist()]

    def fetch(self, number: int) -> None:
        """Make a shard of a mirrored dataset a local file.

        Raises:
            DataError, StorageError: as ``distllm.data.mirror.local_shard``.
        """
        local_shard(self._directory, self._shards[number].record)

    def fill(
        self,
        sample_C: NDArray[np.int64],
        row_C: NDArray[np.int64],
        tokens_BT: NDArray[np.int32],
        targets_BT: NDArray[np.int32],
    ) -> tuple[list[NDArray[np.int64]], list[int]]:
        """Copy the rows ``sample_C`` to the rows ``row_C`` of a batch; padding is left as it is.

        Returns:
            Where segments open, in parts of places ``row * T + column``; and the rows with a damaged
            block, whose content is not to be used.

        Raises:
            DataError: a shard cannot be opened, or a block is damaged and the policy is ``fail``.
        """
        runs = self.layout.runs(sample_C)
        row_R = row_C[runs.row_R]
        opens = [row_R * self._seq_len + runs.column_R]
        damaged = self._damaged_rows(runs, row_R, sample_C)
        apart_R = np.ones(row_R.size, dtype=bool)
        for number in np.flatnonzero(np.bincount(runs.shard_R) >= _TOGETHER).tolist():
            size = self._shard(number).ids_M.size
            whole_R = (runs.shard_R == number) & (runs.length_R == self._seq_len)
            whole_R &= runs.start_R + self._seq_len < size
            apart_R &= ~whole_R
            opens.append(
                self._copy_rows(number, row_R[whole_R], runs.start_R[whole_R], tokens_BT, targets_BT)
            )
        columns = (row_R, runs.column_R, runs.shard_R, runs.start_R, runs.length_R)
        apart = zip(*(part_R[apart_R].tolist() for part_R in columns), strict=True)
        opens += [self._copy_run(run, tokens_BT, targets_BT) for run in apart]
        if self.layout.pads:
            opens.append(self._padding(row_C, runs.row_R, runs.length_R))
        return opens, damaged

    def _copy_rows(
        self,
        number: int,
        row_R: NDArray[np.int64],
        start_R: NDArray[np.int64],
        tokens_BT: NDArray[np.int32],
        targets_BT: NDArray[np.int32],
    ) -> NDArray[np.int64]:
        """Copy whole rows of one shard at once, none at its end; return where documents open in them."""
        shard, seq_len = self._shard(number), self._seq_len
        if not row_R.size:
            return row_R
        ids_RS = sliding_window_view(shard.ids_M, seq_len + 1)[start_R]
        tokens_BT[row_R], targets_BT[row_R] = ids_RS[:, :-1], ids_RS[:, 1:]
        first_R = shard.ends_D.searchsorted(start_R + 1)
        count_R = shard.ends_D.searchsorted(start_R + seq_len) - first_R
        within_O = np.repeat(row_R * seq_len - start_R, count_R)
        opens_O: NDArray[np.int64] = shard.ends_D[ranges(first_R, count_R)] + within_O
        return opens_O

    def _copy_run(
        self, run: tuple[int, ...], tokens_BT: NDArray[np.int32], targets_BT: NDArray[np.int32]
    ) -> NDArray[np.int64]:
        """Copy one run; return where documents open after its first id."""
        row, column, number, start, length = run
        shard, stop = self._shard(number), start + length
        ids_M = shard.ids_M
        tokens_BT[row, column : column + length] = ids_M[start:stop]
        if stop < ids_M.size:
            targets_BT[row, column : column + length] = ids_M[start + 1 : stop + 1]
        else:  # a shard ends with a document, so what follows opens the next
            targets_BT[row, column : column + length - 1] = ids_M[start + 1 :]
            targets_BT[row, column + length - 1] = self._eot_id
        first, last = shard.ends_D.searchsorted((start + 1, stop))
        opens_O: NDArray[np.int64] = shard.ends_D[first:last] + (row * self._seq_len + column - start)
        return opens_O

    def _damaged_rows(self, runs: Runs, row_R: NDArray[np.int64], sample_C: NDArray[np.int64]) -> list[int]:
        """Return the rows with a damaged block, or raise a DataError if the policy is ``fail``."""
        # the last input's target is read too
        stop_R = np.minimum(runs.start_R + runs.length_R + 1, self._tokens_K[runs.shard_R])
        first_R = self._block_K[runs.shard_R] + runs.start_R // self._block_ids
        last_R = self._block_K[runs.shard_R] + (stop_R - 1) // self._block_ids
        # most runs touch one block or two, and most of those are proven already
        unsure_R = ~(self._proven[first_R] & self._proven[last_R]) | (last_R - first_R > 1)
        damaged = []
        for run in np.flatnonzero(unsure_R).tolist():
            shard = self._shard(int(runs.shard_R[run]))
            start, stop = int(runs.start_R[run]), int(stop_R[run])
            if shard.verifier.damaged(start, stop):
                self._tolerate(shard, start, stop, int(sample_C[runs.row_R[run]]))
                damaged.append(int(row_R[run]))
            else:
                self._proven[first_R[run] : last_R[run] + 1] = True
        return damaged

    def _padding(
        self, row_C: NDArray[np.int64], row_R: NDArray[np.int64], length_R: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return where the padding of each row opens, for rows that have any."""
        filled_C = np.bincount(row_R, length_R, minlength=row_C.size).astype(np.int64)
        opens_C: NDArray[np.int64] = (row_C * self._seq_len + filled_C)[filled_C < self._seq_len]
        return opens_C

    def _shard(self, number: int) -> _OpenShard:
        shard = self._open.get(number)
        if shard is None:
            shard = self._open[number] = _OpenShard(self._directory, self._shards[number], self._dtype)
        return shard

    def _tolerate(self, shard: _OpenShard, start: int, stop: int, sample: int) -> None:
        """Go on in spite of damaged ids, or raise a DataError if the policy is ``fail``."""
        if self._on_damage == "skip":
            return
        try:
            shard.verifier.check(start, stop)
        except DataError as error:
            raise DataError(
                f"{error.cause}; sample {sample} of source {self.name} needs it",
                where=error.where,
                remedy=error.remedy,
            ) from error
