"""Rules that edit a text, by name, in the order in which they are applied.

Applying them twice changes nothing more, and an edited text can always be encoded as UTF-8.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Literal

from distllm.config.schema_clean import CleanConfig
from distllm.extras import require

Edit = Callable[[str], str]

_OTHER_BREAKS = "\r\v\f\x85\u2028\u2029"
_LINE_BREAK = re.compile(f"\r\n|[{_OTHER_BREAKS}]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufeff]")
_BLANK_LINES = re.compile(r"\n{3,}")
_SUSPECT = re.compile("[\x80-\u2fff\ue000-\uffff]{2}|[\x80-\x9fÂÃŒœ]")
"""Part of all that ftfy takes for mojibake: two neighbours beyond ASCII but not Chinese, or one of these."""


def unify_line_breaks(text: str) -> str:
    r"""Write every line break, form feed and paragraph separator as ``\n``."""
    # Most texts hold none, and looking for single characters is far faster than the expression.
    return _LINE_BREAK.sub("\n", text) if any(map(text.__contains__, _OTHER_BREAKS)) else text


def remove_controls(text: str) -> str:
    r"""Remove control characters but ``\n`` and ``\t``, byte order marks and lone surrogates."""
    return _CONTROL.sub("", text)


def normalize(form: Literal["NFC", "NFKC"], text: str) -> str:
    """Bring characters to the Unicode normal form ``form``."""
    return text if text.isascii() else unicodedata.normalize(form, text)


def trim_whitespace(text: str) -> str:
    """Remove spaces at line ends and blank lines at both ends; keep at most one blank line in a row."""
    text = "\n".join(map(str.rstrip, text.split("\n")))
    return (_BLANK_LINES.sub("\n\n", text) if "\n\n\n" in text else text).strip("\n")


def remove_repeated_lines(text: str) -> str:
    """Keep one of neighbouring lines that are equal but for spaces at their ends.

    Blank lines are left to ``trim_whitespace``.
    """
    kept = []
    for line, group in groupby(text.split("\n"), str.rstrip):
        kept += [line] if line else list(group)
    return "\n".join(kept)


def repair(text: str) -> str:
    """Undo decoding with a wrong encoding (ftfy) in the lines that may hold it.

    Mojibake may be nested, and what it hid may be control characters: it repeats until nothing changes.

    Raises:
        MissingDependency: ftfy is not installed.
    """
    if text.isascii() or not _SUSPECT.search(text):
        return text
    fix = require("ftfy", "clean.repair").fix_encoding
    fixed = "\n".join(fix(line) if _SUSPECT.search(line) else line for line in text.split("\n"))
    return text if fixed == text else repair(remove_controls(unify_line_breaks(fixed)))


def edits_of(config: CleanConfig) -> dict[str, Edit]:
    """Return the edits that ``config`` asks for, by name, in order."""
    edits: dict[str, Edit] = {"line_breaks": unify_line_breaks, "control_characters": remove_controls}
    if config.repair:
        edits["repair"] = repair
    edits[config.normal_form] = partial(normalize, "NFKC" if config.normal_form == "nfkc" else "NFC")
    if config.repeated_lines:
        edits["repeated_lines"] = remove_repeated_lines
    edits["whitespace"] = trim_whitespace
    return edits
