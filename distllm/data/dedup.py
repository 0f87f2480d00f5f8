"""Exact deduplication of documents."""

from __future__ import annotations

import xxhash

from distllm.data.records import Document, Dropped


class ExactDedup:
    """Remembers the xxh3-128 digest of every text it has seen; about 100 bytes of memory each.

    Documents must be cleaned before, so that texts which differ only in line ends or Unicode
    composition are found equal. The first of equal documents stays.
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def drop_duplicate(self, document: Document) -> Dropped | None:
        """Refuse ``document`` if its text was seen before, else remember it."""
        digest = xxhash.xxh3_128_digest(document.text.encode())
        if digest in self._seen:
            return Dropped(document.id, "duplicate", f"same text as an earlier document ({digest.hex()})")
        self._seen.add(digest)
        return None
