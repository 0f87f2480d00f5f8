"""One number that tells the content of a global batch, however it is divided among ranks."""

from __future__ import annotations

from collections.abc import Iterable

from distllm.data.stream import Batch
from distllm.fsio import digest_bytes

_HEX_DIGITS = 8


def batch_digest(batches: Iterable[Batch]) -> int:
    """Return the sum over rows of 32 bits of xxh3(sample id, token ids).

    Sums over ranks are the same for every division of the same rows, and exact in float64 for up
    to two million rows.
    """
    rows = (row for batch in batches for row in zip(batch.sample_ids_B, batch.tokens_BT, strict=True))
    return sum(int(digest_bytes(sample.tobytes() + ids.tobytes())[:_HEX_DIGITS], 16) for sample, ids in rows)
