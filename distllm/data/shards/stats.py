"""Statistics of a dataset.

Shapes: D documents of one split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distllm.data.manifest import Manifest
from distllm.data.records import ANSWERS
from distllm.data.shards.format import IndexedShard
from distllm.data.shards.index import index_of
from distllm.data.shards.reader import map_shard

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class SplitStats:
    """One split of one source.

    Attributes:
        documents: places of documents, forgotten ones among them.
        tokens: ids of all fields but ``answers``, which no model reads.
        text_bytes: UTF-8 bytes of their text.
        lengths: tokens of a document at each of ``QUANTILES``; empty without documents.
        disk_ratio: bytes of tars and lists of document ids over the bytes of all token ids.
        languages: documents by language, where the preparation recorded it.
    """

    source: str
    split: str
    documents: int
    tokens: int
    text_bytes: int
    lengths: tuple[int, ...]
    disk_ratio: float
    languages: Mapping[str, int]

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per token on average; EOT counts as a token without bytes."""
        return self.text_bytes / self.tokens if self.tokens else 0.0


def split_stats(directory: Path, manifest: Manifest) -> list[SplitStats]:
    """Return the numbers of every split of every source; reads the ends of all documents.

    Raises:
        DataError: the index contradicts the manifest or a shard.
    """
    index, found = index_of(directory, manifest), []
    dtype = np.dtype(manifest.token_dtype).newbyteorder("<")
    for source, splits in manifest.sources.items():
        for split, record in splits.items():
            shards = index[source][split]
            raw = sum(shard.record.tokens for shard in shards) * dtype.itemsize
            disk = sum(shard.record.bytes + shard.ids.bytes for shard in shards)
            found.append(
                SplitStats(
                    source=source,
                    split=split,
                    documents=record.documents,
                    tokens=record.tokens,
                    text_bytes=record.text_bytes,
                    lengths=_lengths(directory, shards, dtype),
                    disk_ratio=disk / raw if raw else 0.0,
                    languages=record.languages,
                )
            )
    return found


def _lengths(directory: Path, shards: Sequence[IndexedShard], dtype: np.dtype[Any]) -> tuple[int, ...]:
    lengths = [np.zeros(0, dtype=np.int64)]
    for shard in shards:
        total_D = np.zeros(shard.record.documents, dtype=np.int64)
        for field in (name for name in shard.fields if name != ANSWERS):
            _, ends_D = map_shard(directory, shard, dtype, field)
            total_D += ends_D.astype(np.int64)
            total_D[1:] -= ends_D[:-1].astype(np.int64)
        lengths.append(total_D)
    lengths_D = np.concatenate(lengths)
    if not lengths_D.size:
        return ()
    return tuple(int(value) for value in np.quantile(lengths_D, QUANTILES, method="lower"))
