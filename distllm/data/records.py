"""What flows between the stages of a preparation: documents, reasons to drop them, progress."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One text with the name that identifies it in its source.

    The split of a document depends on ``id`` alone, so an id must be unique within a source and
    must not depend on anything but the source.
    """

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """Something a source offered and a rule refused: counted by ``rule`` and logged with ``reason``."""

    id: str
    rule: str
    reason: str


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
