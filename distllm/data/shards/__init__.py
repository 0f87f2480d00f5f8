"""Shards of token ids: plain webdataset tars that are also memory-mapped (see ``format``)."""

from distllm.data.manifest import INDEX_FILE
from distllm.data.shards.blocks import BlockVerifier
from distllm.data.shards.documents import (
    Place,
    document_at,
    document_texts,
    find_documents,
    read_document,
    shard_ids,
)
from distllm.data.shards.forget import Removal, forget
from distllm.data.shards.format import TEXT_MEMBERS, IndexedShard, Member, members_of, token_dtype
from distllm.data.shards.index import (
    Index,
    decode_entry,
    encode_entry,
    index_of,
    load_index,
    write_index,
)
from distllm.data.shards.merge import merge
from distllm.data.shards.reader import map_shard
from distllm.data.shards.reindex import reindex
from distllm.data.shards.stats import SplitStats, split_stats
from distllm.data.shards.verify import verify
from distllm.data.shards.writer import Column, plan_shards, write_shard

__all__ = [
    "INDEX_FILE",
    "TEXT_MEMBERS",
    "BlockVerifier",
    "Column",
    "Index",
    "IndexedShard",
    "Member",
    "Place",
    "Removal",
    "SplitStats",
    "decode_entry",
    "document_at",
    "document_texts",
    "encode_entry",
    "find_documents",
    "forget",
    "index_of",
    "load_index",
    "map_shard",
    "members_of",
    "merge",
    "plan_shards",
    "read_document",
    "reindex",
    "shard_ids",
    "split_stats",
    "token_dtype",
    "verify",
    "write_index",
    "write_shard",
]
