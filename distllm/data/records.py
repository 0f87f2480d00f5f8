"""Values that pass between the stages of a preparation: documents, reasons to drop them, progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TEXT = "text"
ANSWERS = "answers"
_SAMPLE_CHARS = 200


@dataclass(frozen=True, slots=True)
class Document:
    """Named texts that belong together, with the name that identifies them in their source.

    A plain document has one field, ``text``; a pair has ``source`` and ``target``, and so on: every
    document of a source has the same fields in the same order. The split of a document depends on
    ``id`` (of a question, on its context; of a preference, on its prompt) alone, so an id must be unique
    within a source and must not depend on anything but the source. ``language`` is an ISO 639-1 code, empty
    while it is unknown.
    """

    id: str
    fields: Mapping[str, str]
    language: str = ""

    @classmethod
    def from_text(cls, id_: str, text: str, language: str = "") -> Document:
        """Return a plain document."""
        return cls(id_, {TEXT: text}, language)

    @property
    def text(self) -> str:
        """All fields, joined by line breaks, for digests, signatures and counts."""
        return "\n".join(self.fields.values())


@dataclass(frozen=True, slots=True)
class Dropped:
    """An item of a source that a rule refused; counted by ``rule`` and logged with ``reason``.

    ``sample`` shows how the refused text begins.
    """

    id: str
    rule: str
    reason: str
    sample: str = ""

    @classmethod
    def of(cls, document: Document, rule: str, reason: str) -> Dropped:
        """Refuse ``document``, keeping the first characters of its text."""
        return cls(document.id, rule, reason, excerpt(document.text))


def excerpt(text: str, most: int = _SAMPLE_CHARS) -> str:
    """Return how ``text`` begins, in at most so many characters and whole words.

    Words stay whole, because half an e-mail address would not be recognised as personal data.
    """
    if len(text) <= most:
        return text
    head, *last = text[:most].rsplit(maxsplit=1)
    return head if last else text[:most]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one stage has come, for a progress bar that the caller draws.

    ``total`` is None where the amount of work is unknown; ``unit`` names what is counted.
    """

    stage: str
    done: int
    total: int | None
    unit: str
    note: str = ""
