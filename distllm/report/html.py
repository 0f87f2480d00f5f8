"""Small pieces of HTML, and numbers as people read them in a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

_LONGEST = 160


def table(heads: Sequence[str], rows: Sequence[str], *, numeric_from: int | None = None) -> str:
    """Return a table that scrolls sideways in itself; columns from ``numeric_from`` on are numbers."""
    head = "".join(
        f'<th class="n">{escape(name)}</th>'
        if numeric_from is not None and index >= numeric_from
        else f"<th>{escape(name)}</th>"
        for index, name in enumerate(heads)
    )
    body = "".join(rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def cells(values: Iterable[str], kind: str = "") -> str:
    """Return table cells of texts, which are escaped."""
    mark = f' class="{kind}"' if kind else ""
    return "".join(f"<td{mark}>{escape(value)}</td>" for value in values)


def number(value: Any) -> str:
    """Return a number as ``7.1234`` or ``1.2e+09``, and any other value as ``str`` does (None: a dash)."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return "–" if value is None else str(value)
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.5g}"


def figure(value: Any) -> str:
    """Return any value of a configuration or record, shortened if it is long."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def clock(seconds: float) -> str:
    """Unix seconds as a date and time of day in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
