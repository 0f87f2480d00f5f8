"""Which documents, lines and paragraphs repeat others, and which contaminate an evaluation."""

from distllm.data.dedup.decide import Unit, decide
from distllm.data.dedup.decisions import Decision
from distllm.data.dedup.decontaminate import Decontaminator
from distllm.data.dedup.removals import Removals
from distllm.data.dedup.signing import SignedDocuments, sign
from distllm.data.dedup.stored import shard_documents, stored_documents, stored_shards

__all__ = [
    "Decision",
    "Decontaminator",
    "Removals",
    "SignedDocuments",
    "Unit",
    "decide",
    "shard_documents",
    "sign",
    "stored_documents",
    "stored_shards",
]
