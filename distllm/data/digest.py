"""A digest of the content of a global batch, however it is divided among ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from distllm.data.batch import Batch
from distllm.fsio import digest_bytes

_HEX_DIGITS = 8


def batch_digest(batches: Iterable[Batch]) -> int:
    """Return the sum over rows of 32 bits of xxh3(sample id, token ids, ids of the source).

    Sums over ranks are the same for every division of the same rows, and exact in float64 for up
    to two million rows.
    """
    contents = (content for batch in batches for content in _contents(batch))
    return sum(int(digest_bytes(content)[:_HEX_DIGITS], 16) for content in contents)


def _contents(batch: Batch) -> Iterator[bytes]:
    parts = [batch.sample_ids_B, batch.tokens_BT]
    if batch.source is not None:
        parts.append(batch.source.tokens_BS)
    for row in zip(*parts, strict=True):
        yield b"".join(part.tobytes() for part in row)
