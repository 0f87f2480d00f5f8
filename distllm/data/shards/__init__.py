"""Shards of token ids: plain webdataset tars that are also memory-mapped (see ``format``)."""

from distllm.data.shards.blocks import BlockVerifier
from distllm.data.shards.format import TEXT_MEMBERS, IndexedShard, Member, members_of, token_dtype
from distllm.data.shards.index import (
    INDEX_FILE,
    Index,
    decode_entry,
    encode_entry,
    load_index,
    read_index,
    write_index,
)
from distllm.data.shards.reader import map_shard
from distllm.data.shards.verify import verify
from distllm.data.shards.writer import Column, ShardWriter, plan_shards, write_shard

__all__ = [
    "INDEX_FILE",
    "TEXT_MEMBERS",
    "BlockVerifier",
    "Column",
    "Index",
    "IndexedShard",
    "Member",
    "ShardWriter",
    "decode_entry",
    "encode_entry",
    "decode_shard",
    "encode_shard",
    "load_index",
    "map_shard",
    "members_of",
    "plan_shards",
    "read_index",
    "token_dtype",
    "verify",
    "write_index",
    "write_shard",
]
