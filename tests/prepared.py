"""Small dataset directories made from ids, for tests of whatever reads them."""

from functools import cache

import numpy as np

from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.manifest import Manifest, SourceCounts, SplitRecord
from distllm.data.shards import INDEX_FILE, load_index, token_dtype, write_index, write_shard
from distllm.data.shards.format import shard_path
from distllm.data.tokenizer import TOKENIZER_FILES, Tokenizer
from distllm.fsio import digest_file


@cache
def byte_tokenizer():
    """Return a tokenizer of 256 bytes and EOT (id 0), without merges."""
    return Tokenizer.train([], TokenizerConfig(vocab_size=258))


def write_dataset(directory, *, shard_bytes=1 << 20, source="text", **splits):
    """Write a dataset of ``split=[[id, …], …]`` with one source; each document gets its EOT.

    Document ``i`` of a split is called ``split-i``. Return the manifest.
    """
    return write_sources(directory, {source: splits}, shard_bytes=shard_bytes)


def write_sources(directory, sources, *, shard_bytes=1 << 20, fields=None):
    """Write a dataset of ``{source: {split: documents}}``. Return the manifest.

    A document is a list of ids, or for a source named in ``fields`` a tuple of lists, one a field.
    """
    tokenizer, fields = byte_tokenizer(), dict.fromkeys(sources, ("text",)) | (fields or {})
    dtype = token_dtype(tokenizer.vocab_size)
    index, records = {}, {}
    for source, splits in sources.items():
        index[source], records[source] = {}, {}
        for split, documents in splits.items():
            writer = ShardWriter(
                directory,
                source,
                split,
                dtype=dtype,
                shard_bytes=shard_bytes,
                tokenizer_fingerprint=tokenizer.fingerprint,
                fields=fields[source],
            )
            for number, document in enumerate(documents):
                plain = fields[source] == ("text",)
                columns = [[tokenizer.eot_id, *document]] if plain else document
                writer.add(f"{split}-{number}", *(np.array(ids, dtype=np.int64) for ids in columns))
            index[source][split] = writer.close()
            shards = tuple(shard.record for shard in index[source][split])
            tokens = sum(shard.tokens for shard in shards)
            text_bytes = tokens - len(documents) * plain if documents else 0
            records[source][split] = SplitRecord(tokens, len(documents), text_bytes, shards)
    directory.mkdir(exist_ok=True)
    write_index(directory, index)
    tokenizer.save(directory)
    counts = {name: sum(map(len, splits.values())) for name, splits in sources.items()}
    manifest = Manifest(
        pipeline={"seed": 0},
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eot_id=tokenizer.eot_id,
        token_dtype=dtype.name,
        sources=records,
        fields=fields,
        counts={name: SourceCounts(count, count) for name, count in counts.items()},
        files={name: digest_file(directory / name) for name in (INDEX_FILE, *TOKENIZER_FILES)},
    )
    manifest.save(directory)
    return manifest


def read_index(directory, source, split):
    """Return the shards of one split of one source."""
    return load_index(directory)[source][split]


class ShardWriter:
    """Writes the documents of one split of one source into shards of about ``shard_bytes`` of ids.

    A shard is closed before the document that would take it past ``shard_bytes``; a longer document
    gets a shard of its own, as in ``plan_shards``. Held in memory: the ids of one shard.
    """

    def __init__(
        self,
        directory,
        source,
        split,
        *,
        dtype,
        shard_bytes,
        tokenizer_fingerprint,
        fields=("text",),
    ):
        self._directory = directory
        self._source, self._split = source, split
        self._dtype = dtype
        self._capacity = shard_bytes // dtype.itemsize
        self._fingerprint = tokenizer_fingerprint
        self._fields = tuple(fields)
        self._shards = []
        self._clear()

    def add(self, document_id, *ids_N):
        """Append one document: its ids of each field, in the order of ``fields``."""
        if len(ids_N) != len(self._fields):
            raise ValueError(f"{document_id} has {len(ids_N)} of {len(self._fields)} fields")
        length = sum(part_N.size for part_N in ids_N)
        if self._names and self._length + length > self._capacity:
            self._flush()
        self._names.append(document_id)
        for parts, part_N in zip(self._parts, ids_N, strict=True):
            parts.append(part_N)
        self._length += length

    def close(self):
        """Write what is left and return all shards of the split, in order."""
        if self._names:
            self._flush()
        return self._shards

    def _clear(self):
        self._names = []
        self._parts = [[] for _ in self._fields]
        self._length = 0

    def _flush(self):
        columns = {
            field: (np.concatenate(parts), np.cumsum([part_N.size for part_N in parts]))
            for field, parts in zip(self._fields, self._parts, strict=True)
        }
        path = shard_path(self._source, self._split, len(self._shards))
        shard = write_shard(self._directory, path, self._names, columns, self._dtype, self._fingerprint)
        self._shards.append(shard)
        self._clear()
