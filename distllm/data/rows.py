"""Copying the rows of one source out of its mapped shards, proving every block on the way.

Shapes: B rows of a batch, C rows of this source among them, T = seq_len, R runs, M ids of one shard,
D documents of one shard, O places in a batch where a segment opens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distllm.data.packing import DocumentLayout, Layout, Packing, WindowLayout
from distllm.data.shards import BlockVerifier, IndexedShard, map_shard
from distllm.data.shards.format import BLOCK_BYTES
from distllm.errors import DataError

OnDamage: TypeAlias = Literal["fail", "skip"]


class _OpenShard:
    """A mapped shard and the proof of its ids."""

    def __init__(self, directory: Path, shard: IndexedShard, dtype: np.dtype[Any]) -> None:
        self.ids_M, ends_D = map_shard(directory, shard, dtype)
        self.ends_D: NDArray[np.int64] = ends_D.view("<i8")
        self.verifier = BlockVerifier(directory, shard, dtype)
        self._proven = bytearray(-(-self.ids_M.nbytes // BLOCK_BYTES))
        self._block_ids = BLOCK_BYTES // dtype.itemsize

    def damaged(self, start: int, stop: int) -> bool:
        """Whether a block with one of these ids is damaged; asks the verifier until it never is."""
        first, after = start // self._block_ids, (stop - 1) // self._block_ids + 1
        if self._proven.find(0, first, after) < 0:
            return False
        if self.verifier.damaged(start, stop):
            return True
        self._proven[first:after] = b"\1" * (after - first)
        return False


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

    Raises:
        DataError: documents are to be packed, and the list of their ends is damaged.
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
    ) -> None:
        self.name = name
        self._directory, self._shards, self._dtype = directory, shards, dtype
        self._eot_id, self._seq_len, self._on_damage = eot_id, seq_len, on_damage
        self._open: dict[int, _OpenShard] = {}
        self.layout: Layout
        if packing == "window":
            self.layout = WindowLayout([shard.record.tokens for shard in shards], seq_len)
        else:
            ends = (self._shard(number).ends_D for number in range(len(shards)))
            self.layout = DocumentLayout(ends, seq_len, packing)

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
        place_R = row_R * self._seq_len + runs.column_R
        opens, damaged = [place_R], list[int]()
        columns = (row_R, runs.column_R, runs.shard_R, runs.start_R, runs.length_R, place_R)
        run_samples = sample_C[runs.row_R]
        # slices beat an index of every id by far, and rows of different shards share nothing else
        for run, (row, column, number, start, length, place) in enumerate(
            zip(*(part.tolist() for part in columns), strict=True)
        ):
            shard, stop = self._shard(number), start + length
            ids_M = shard.ids_M
            if shard.damaged(start, min(stop + 1, ids_M.size)):
                self._tolerate(shard, start, min(stop + 1, ids_M.size), int(run_samples[run]))
                damaged.append(row)
            tokens_BT[row, column : column + length] = ids_M[start:stop]
            if stop < ids_M.size:
                targets_BT[row, column : column + length] = ids_M[start + 1 : stop + 1]
            else:  # a shard ends with a document, so what follows opens the next
                targets_BT[row, column : column + length - 1] = ids_M[start + 1 :]
                targets_BT[row, column + length - 1] = self._eot_id
            first, last = shard.ends_D.searchsorted((start + 1, stop))
            if first < last:
                opens.append(shard.ends_D[first:last] + (place - start))
        if self.layout.pads:
            opens.append(self._padding(row_C, runs.row_R, runs.length_R))
        return opens, damaged

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
