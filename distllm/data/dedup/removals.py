"""The decision on one unit, as a file, and its execution on each document."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from distllm.data.dedup.decisions import Decision
from distllm.data.dedup.signing import SEPARATORS
from distllm.data.records import TEXT, Document, Dropped, excerpt
from distllm.fsio import digest_bytes

_SAMPLE_CHARS = 80
_REASONS = {
    "duplicate": "same text as {keeper}",
    "near_duplicate": "nearly the same text as {keeper}",
    "duplicate_id": "another document of this source is called {keeper} too",
}


@dataclass(frozen=True)
class Removals:
    """What one unit loses; read for its first document, and kept until another unit is read.

    Attributes:
        path: the file that `save` wrote.
        digest: digest of that file; later stages depend only on it.
    """

    path: Path
    digest: str

    @classmethod
    def save(cls, path: Path, decision: Decision) -> Removals:
        """Write ``decision`` to ``path``."""
        content = json.dumps(asdict(decision), sort_keys=True).encode()
        path.write_bytes(content)
        return cls(path, digest_bytes(content))

    def apply(self, row: int, document: Document) -> Document | Dropped:
        """Return ``document`` without its dropped lines and paragraphs, or why all of it is dropped."""
        if (verdict := self._content["documents"].get(str(row))) is not None:
            rule, keeper = verdict
            return Dropped.of(document, rule, _REASONS[rule].format(keeper=keeper))
        text = document.fields.get(TEXT)
        if text is None:
            return document
        gone = set(self._content["pieces"].get(str(row), ()))
        if not gone:
            return document
        kind = self._content["kind"]
        pieces = text.split(SEPARATORS[kind])
        left = SEPARATORS[kind].join(piece for number, piece in enumerate(pieces) if number not in gone)
        if not left.strip():
            return Dropped.of(document, f"duplicate_{kind}", f"all its {kind} stand in other documents")
        return Document(document.id, {**document.fields, TEXT: left.strip("\n")}, document.language)

    def cut(self, row: int, document: Document) -> Dropped | None:
        """Return what is cut out of ``document`` if the rest is kept, with the first such piece."""
        gone = self._content["pieces"].get(str(row), ())
        if not gone or TEXT not in document.fields:
            return None
        kind = self._content["kind"]
        first = excerpt(document.fields[TEXT].split(SEPARATORS[kind])[min(gone)], _SAMPLE_CHARS)
        reason = f"{len(gone)} of its {kind} stand in other documents, the first: {first}"
        return Dropped.of(document, f"duplicate_{kind}", reason)

    @property
    def _content(self) -> dict[str, Any]:
        return _read(self.path, self.digest)


@lru_cache(maxsize=1)
def _read(path: Path, digest: str) -> dict[str, Any]:
    """Return the content of the file of this digest: of one unit at a time, as units are gone through."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
