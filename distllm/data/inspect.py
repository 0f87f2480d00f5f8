"""Batches as text, for people who want to see what the model sees."""

from __future__ import annotations

import numpy as np

from distllm.data.stream import IGNORE_INDEX, Batch
from distllm.data.tokenizer import Tokenizer


def describe_batch(batch: Batch, tokenizer: Tokenizer) -> str:
    """Return the exact text of every row, its documents apart, with sample ids and counts.

    A document that began in an earlier window is marked as continued. The EOT that opens a document
    is counted and not printed; ``next`` is the target of the row's last input.
    """
    rows = range(batch.tokens_BT.shape[0])
    return "\n".join(_describe_row(batch, row, tokenizer) for row in rows)


def _describe_row(batch: Batch, row: int, tokenizer: Tokenizer) -> str:
    tokens_T, segments_T = batch.tokens_BT[row], batch.segments_BT[row]
    documents = int(segments_T[-1]) + 1
    scored = int(np.count_nonzero(batch.targets_BT[row] != IGNORE_INDEX))
    lines = [
        f"=== row {row} · sample {batch.sample_ids_B[row]} · {tokens_T.size} tokens, {scored} scored"
        f" · {documents} {'document' if documents == 1 else 'documents'}"
    ]
    for segment in range(documents):
        ids = tokens_T[segments_T == segment].tolist()
        opened = ids[0] == tokenizer.eot_id
        origin = "from its start" if opened else "continued"
        lines.append(f"--- document {segment + 1} of {documents} · {len(ids)} tokens · {origin}")
        lines.append(tokenizer.decode(ids[1:] if opened else ids))
    following = int(batch.targets_BT[row, -1])
    if following != IGNORE_INDEX:
        lines.append(f"--- next: {tokenizer.decode([following])!r}")
    return "\n".join(lines) + "\n"
