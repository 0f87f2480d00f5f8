"""Parsing and formatting of counts, sizes in bytes and durations."""

from __future__ import annotations

import re
from fractions import Fraction

_COUNT_SUFFIX = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_BYTE_SUFFIX = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 10 ** (3 * i) for i, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 2 ** (10 * i) for i, letter in enumerate("kmgt", 1)},
}
_QUANTITY = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:e[0-9]{1,2})?)\s*([a-zA-Z]*)\s*")


def parse_count(text: str) -> int:
    """Parse a count such as ``4096``, ``1_000``, ``1.5M`` or ``2B`` (powers of ten).

    Raises:
        ValueError: the text is not a count, or not a whole number.
    """
    return _parse(text, _COUNT_SUFFIX, "a count such as 4096, 1.5M or 2B")


def parse_bytes(text: str) -> int:
    """Parse a size such as ``4096``, ``10MB`` (powers of ten) or ``64MiB`` (powers of two).

    Raises:
        ValueError: the text is not a size, or not a whole number of bytes.
    """
    return _parse(text, _BYTE_SUFFIX, "a size such as 10MB or 64MiB")


def _parse(text: str, suffixes: dict[str, int], expected: str) -> int:
    match = _QUANTITY.fullmatch(text)
    scale = suffixes.get(match.group(2).lower()) if match else None
    if match is None or scale is None:
        raise ValueError(f"{text!r} is not {expected}")
    value = Fraction(match.group(1).replace("_", "")) * scale
    if value.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number")
    return int(value)


def format_count(value: float) -> str:
    """Return ``1.23M`` for ``1234567``."""
    shown = float(f"{value:.3g}")  # rounded before the suffix is chosen: 999950 is 1M, not 1000k
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(shown) >= scale:
            return f"{shown / scale:.4g}{suffix}"
    return f"{value:.4g}"


def count_of(number: int, noun: str) -> str:
    """Return ``1 node``, or ``2 nodes``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def format_bytes(value: float) -> str:
    """Return ``1.5 KiB`` for ``1536``."""
    for scale, suffix in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(value) >= scale:
            return f"{value / scale:.1f} {suffix}"
    return f"{value:.0f} B"


def format_duration(seconds: float) -> str:
    """Return ``1h02m05s`` for ``3725.4``; below ten seconds with one decimal."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes:02d}m{rest:02d}s"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
