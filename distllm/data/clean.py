"""Cleaning: named rules that edit a text, and one that drops what is left too short.

Applying the rules twice changes nothing more, and a cleaned text can always be encoded as UTF-8.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from types import MappingProxyType

from distllm.data.records import Document, Dropped

_LINE_BREAK = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufeff]")
_LINE_END = re.compile(r"[^\S\n]+(?=\n|\Z)")
_BLANK_LINES = re.compile(r"\n{3,}")


def unify_line_breaks(text: str) -> str:
    r"""Write every line break, form feed and paragraph separator as ``\n``."""
    return _LINE_BREAK.sub("\n", text)


def remove_controls(text: str) -> str:
    r"""Remove control characters but ``\n`` and ``\t``, byte order marks and lone surrogates."""
    return _CONTROL.sub("", text)


def compose(text: str) -> str:
    """Compose characters canonically (Unicode NFC)."""
    return unicodedata.normalize("NFC", text)


def trim_whitespace(text: str) -> str:
    """Remove spaces at line ends and blank lines at both ends; keep at most one blank line in a row."""
    return _BLANK_LINES.sub("\n\n", _LINE_END.sub("", text)).strip("\n")


RULES = MappingProxyType[str, Callable[[str], str]](
    {
        "line_breaks": unify_line_breaks,
        "control_characters": remove_controls,
        "nfc": compose,
        "whitespace": trim_whitespace,
    }
)
"""The editing rules in the order in which they are applied."""


def clean(text: str) -> tuple[str, list[str]]:
    """Apply every rule of ``RULES``; return the text and the names of the rules that changed it."""
    changed = []
    for name, rule in RULES.items():
        edited = rule(text)
        if edited != text:
            changed.append(name)
            text = edited
    return text, changed


def drop_short(document: Document, min_chars: int) -> Dropped | None:
    """Refuse an empty document, and one of fewer than ``min_chars`` characters."""
    if len(document.text) >= max(1, min_chars):
        return None
    reason = f"{len(document.text)} characters after cleaning, clean.min_chars={min_chars}"
    return Dropped(document.id, "too_short", reason)
