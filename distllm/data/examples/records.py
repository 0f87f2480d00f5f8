"""The documents of one shard, field by field, every block verified before it is used.

Shapes: N documents, M ids of one field.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distllm.data.examples.framing import Record
from distllm.data.records import ANSWERS
from distllm.data.shards import BlockVerifier, IndexedShard, map_shard, shard_ids
from distllm.errors import DataError


class ShardRecords:
    """Random access to the documents of a shard.

    Args:
        directory: the dataset.
        shard: the entry of the index.
        fields: the fields to read.
        dtype: format of the ids.

    Attributes:
        sizes: the ids of each field of every document.

    Raises:
        DataError: the shard cannot be opened, or the ends of its documents are damaged.
    """

    def __init__(
        self, directory: Path, shard: IndexedShard, fields: Sequence[str], dtype: np.dtype[Any]
    ) -> None:
        self._directory, self._shard = directory, shard
        self._ids: dict[str, NDArray[Any]] = {}
        self._ends: dict[str, NDArray[np.int64]] = {}
        self._verifiers: dict[str, BlockVerifier] = {}
        for field in fields:
            ids_M, ends_N = map_shard(directory, shard, dtype, field)
            self._ids[field], self._ends[field] = ids_M, ends_N.view("<i8")
            self._verifiers[field] = BlockVerifier(directory, shard, dtype, field)
        self.sizes = {field: np.diff(ends_N, prepend=np.int64(0)) for field, ends_N in self._ends.items()}

    def damaged(self, row: int) -> bool:
        """Whether a block of document ``row`` is damaged."""
        return any(verifier.damaged(*self._span(field, row)) for field, verifier in self._verifiers.items())

    def read(self, row: int) -> Record:
        """Return the ids of each field of document ``row``.

        Raises:
            DataError: a block of it is damaged.
        """
        record = {}
        for field, verifier in self._verifiers.items():
            start, stop = self._span(field, row)
            verifier.check(start, stop)
            record[field] = self._ids[field][start:stop].astype(np.int64)
        return record

    def name(self, row: int) -> str:
        """Return the name of document ``row`` in messages."""
        return repr(shard_ids(self._directory, self._shard)[row] or "a forgotten document")

    def holding(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the documents whose ids of the first field lie in ``start`` to ``stop``."""
        ends_N = next(iter(self._ends.values()))
        first, last = ends_N.searchsorted([start, stop - 1], side="right").tolist()
        return np.arange(first, last + 1)

    def require_content(self, largest: int) -> None:
        """Check that no field of any document is empty, and that every id is in the vocabulary.

        Raises:
            DataError: naming the first document with an empty field, or the field with such an id.
        """
        for field, sizes_N in self.sizes.items():
            if not sizes_N.all():
                row = int(np.argmin(sizes_N))
                raise DataError(
                    f"the field {field} of document {self.name(row)} is empty",
                    where=self._shard.record.path,
                    remedy="remove the document from the source and prepare it again, or forget it with "
                    "distllm data forget",
                )
            found = int(self._ids[field].max(initial=0))
            if found >= (max(largest, 256) if field == ANSWERS else largest):  # these may be bytes
                raise DataError(
                    f"the field {field} holds the id {found}, outside the vocabulary of {largest}",
                    where=self._shard.record.path,
                    remedy="prepare the dataset again: distllm data verify says what is damaged",
                )

    def _span(self, field: str, row: int) -> tuple[int, int]:
        ends_N = self._ends[field]
        return int(ends_N[row - 1]) if row else 0, int(ends_N[row])
