"""The decoded documents of a prepared dataset, for `against` and for evaluation sets."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from distllm.data.manifest import Manifest
from distllm.data.records import Document
from distllm.data.shards import BlockVerifier, IndexedShard, document_texts, load_index, map_shard, shard_ids
from distllm.data.split import SPLITS
from distllm.data.tokenizer import Tokenizer


def stored_documents(directory: Path, splits: Collection[str] = SPLITS) -> Iterator[Document]:
    """Yield the documents of ``splits``, whatever their source; forgotten ones are left out.

    Raises:
        DataError: the directory is no dataset, or a shard is damaged.
    """
    shards, tokenizer = stored_shards(directory, splits), Tokenizer.load(directory)
    for shard in shards:
        yield from shard_documents(directory, shard, tokenizer)


def stored_shards(directory: Path, splits: Collection[str] = SPLITS) -> list[IndexedShard]:
    """Return the shards of ``splits``, whatever their source.

    Raises:
        DataError: the directory is no dataset.
    """
    Manifest.load(directory)
    return [
        shard
        for parts in load_index(directory).values()
        for split in splits
        for shard in parts.get(split, ())
    ]


def shard_documents(directory: Path, shard: IndexedShard, tokenizer: Tokenizer) -> Iterator[Document]:
    """Yield the documents of one shard; forgotten ones are left out.

    Raises:
        DataError: the shard is damaged.
    """
    dtype = np.dtype(Manifest.load(directory).token_dtype).newbyteorder("<")
    columns = {field: map_shard(directory, shard, dtype, field) for field in shard.fields}
    for field, (ids_M, _) in columns.items():
        BlockVerifier(directory, shard, dtype, field).check(0, ids_M.size)
    for row, id_ in enumerate(shard_ids(directory, shard)):
        if id_ is None:
            continue
        ids = {
            field: ids_M[int(ends_D[row - 1]) if row else 0 : int(ends_D[row])]
            for field, (ids_M, ends_D) in columns.items()
        }
        yield Document(id_, document_texts(ids, tokenizer))
