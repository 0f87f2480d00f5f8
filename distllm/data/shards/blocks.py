"""Verifies the ids that a reader uses, block by block.

Shapes: K blocks of one member.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from distllm.data.records import TEXT
from distllm.data.shards.format import BLOCK_BYTES, BLOCKS, IndexedShard, members_of
from distllm.data.shards.reader import payload
from distllm.errors import DataError
from distllm.fsio import digest_bytes


class BlockVerifier:
    """Compares blocks of a field's ids with their stored digests, each once unless it is damaged.

    Several threads may share one: at worst two of them verify the same block.

    Args:
        directory: the dataset.
        shard: the entry of the index.
        dtype: format of the ids.
        field: which of the shard's fields.

    Raises:
        DataError: the ends of the documents or the digests of the blocks are damaged, the tar is
            missing or cut, or the index contradicts it.
    """

    def __init__(self, directory: Path, shard: IndexedShard, dtype: np.dtype[Any], field: str = TEXT) -> None:
        self._path = directory / shard.record.path
        self._suffix, ends = members_of(field)
        self._itemsize = dtype.itemsize
        self._content = payload(directory, shard, self._suffix)
        for suffix in (ends, BLOCKS):
            if digest_bytes(payload(directory, shard, suffix).tobytes()) != shard.members[suffix].digest:
                raise DataError(
                    f"shard {self._path}: {suffix} is damaged",
                    where=str(self._path),
                    remedy="restore the shard from a copy, or prepare the dataset again",
                )
        before = 0
        for other in shard.fields:
            if other == field:
                break
            before += _blocks(shard.members[members_of(other)[0]].bytes)
        count = _blocks(self._content.size)
        self._expected_K = payload(directory, shard, BLOCKS).view("<u8")[before : before + count].copy()
        self._proven_K = np.zeros(count, dtype=bool)

    def damaged(self, start: int, stop: int) -> list[int]:
        """Return the damaged blocks among those that hold the ids ``start`` to ``stop``."""
        if start >= stop:
            return []
        first = start * self._itemsize // BLOCK_BYTES
        last = (stop * self._itemsize - 1) // BLOCK_BYTES
        if self._proven_K[first : last + 1].all():
            return []
        return [block for block in range(first, last + 1) if not self._prove(block)]

    def check(self, start: int, stop: int) -> None:
        """Verify the ids ``start`` to ``stop``.

        Raises:
            DataError: naming the shard, the first damaged block and its bytes in the file.
        """
        if not (damaged := self.damaged(start, stop)):
            return
        block = damaged[0]
        low = block * BLOCK_BYTES
        high = min(low + BLOCK_BYTES, self._content.size)
        more = f" ({len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise DataError(
            f"shard {self._path}: block {block} of {self._suffix}, bytes {low} to {high}, is damaged{more}",
            where=str(self._path),
            remedy="restore the shard from a copy or prepare the dataset again; "
            "data.on_damage=skip goes on without the block",
        )

    def _prove(self, block: int) -> bool:
        if not self._proven_K[block]:
            content = self._content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            self._proven_K[block] = xxhash.xxh3_64_intdigest(content.data) == int(self._expected_K[block])
        return bool(self._proven_K[block])


def _blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES)
