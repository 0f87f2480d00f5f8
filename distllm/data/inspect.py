"""Batches as text, for people who want to see what the model sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distllm.data.batch import IGNORE_INDEX, Batch
from distllm.data.tokenizer import Tokenizer


def describe_batch(batch: Batch, tokenizer: Tokenizer, origins: Sequence[str] = ()) -> str:
    """Return the exact text of every row, separated by documents, with sample ids and counts.

    A document that began in an earlier window is marked as continued. The EOT that opens a document
    is counted and not printed; ``next`` is the target of the row's last input. EOT alone without loss
    is padding, a forgotten document or a damaged row. The source of a segment is printed
    before it.

    Args:
        batch: the rows.
        tokenizer: of the dataset.
        origins: where each row comes from, in words.
    """
    rows = range(batch.tokens_BT.shape[0])
    marks = [f" · {origin}" for origin in origins] or [""] * len(rows)
    return "\n".join(_describe_row(batch, row, tokenizer, marks[row]) for row in rows)


def _describe_row(batch: Batch, row: int, tokenizer: Tokenizer, origin: str) -> str:
    tokens_T, segments_T = batch.tokens_BT[row], batch.segments_BT[row]
    documents = int(segments_T[-1]) + 1
    source = batch.source
    scored = int(np.count_nonzero(batch.targets_BT[row] != IGNORE_INDEX))
    lines = [
        f"=== row {row} · sample {batch.sample_ids_B[row]}{origin} · {tokens_T.size} tokens, {scored} scored"
        f" · {documents} {'document' if documents == 1 else 'documents'}"
    ]
    for segment in range(documents):
        here_T = segments_T == segment
        ids = tokens_T[here_T].tolist()
        silent = (batch.targets_BT[row][here_T] == IGNORE_INDEX).all()
        if silent and ids == [tokenizer.eot_id] * len(ids):
            lines.append(f"--- {len(ids)} tokens without text or loss")
            continue
        if source is not None:
            read = source.tokens_BS[row][source.segments_BS[row] == segment].tolist()
            lines.append(f"--- source {segment + 1} of {documents} · {len(read)} tokens")
            lines.append(tokenizer.decode(read))
        opened = ids[0] == tokenizer.eot_id
        start = "from its start" if opened else "continued"
        lines.append(f"--- document {segment + 1} of {documents} · {len(ids)} tokens · {start}")
        lines.append(tokenizer.decode(ids[1:] if opened else ids))
    following = int(batch.targets_BT[row, -1])
    if following != IGNORE_INDEX:
        lines.append(f"--- next: {tokenizer.decode([following])!r}")
    return "\n".join(lines) + "\n"
