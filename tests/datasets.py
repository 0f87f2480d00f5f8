"""Small dataset directories made from ids, for tests of whatever reads them."""

from functools import cache

import numpy as np

from distllm.data.manifest import Manifest, SplitRecord
from distllm.data.shards import INDEX_FILE, ShardWriter, token_dtype, write_index
from distllm.data.tokenizer import TOKENIZER_FILE, Tokenizer
from distllm.fsio import digest_file


@cache
def byte_tokenizer():
    """Return a tokenizer of 256 bytes and EOT (id 0), without merges."""
    return Tokenizer.train([], 258)


def write_dataset(directory, *, shard_bytes=1 << 20, **splits):
    """Write a dataset of ``split=[[id, …], …]``; each document gets its EOT. Return the manifest."""
    tokenizer = byte_tokenizer()
    dtype = token_dtype(tokenizer.vocab_size)
    shards = {}
    for split, documents in splits.items():
        writer = ShardWriter(
            directory,
            split,
            dtype=dtype,
            shard_bytes=shard_bytes,
            tokenizer_fingerprint=tokenizer.fingerprint,
        )
        for ids in documents:
            writer.add(np.array([tokenizer.eot_id, *ids]))
        shards[split] = writer.close()
    directory.mkdir(exist_ok=True)
    write_index(directory, shards)
    tokenizer.save(directory / TOKENIZER_FILE)
    records = {
        split: SplitRecord(
            tokens=sum(len(ids) + 1 for ids in documents),
            documents=len(documents),
            text_bytes=sum(map(len, documents)),
            shards=tuple(shard.record for shard in shards[split]),
        )
        for split, documents in splits.items()
    }
    count = sum(map(len, splits.values()))
    manifest = Manifest(
        pipeline={"seed": 0},
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eot_id=tokenizer.eot_id,
        token_dtype=dtype.name,
        splits=records,
        read=count,
        kept=count,
        dropped={},
        edited={},
        files={name: digest_file(directory / name) for name in (INDEX_FILE, TOKENIZER_FILE)},
    )
    manifest.save(directory)
    return manifest
