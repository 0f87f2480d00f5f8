"""The part of a passage that is shown in a result, and the words of the query in it."""

from __future__ import annotations

from collections.abc import Iterable

from distllm.evaluate.retrieval import WORD

WIDTH = 240
_CUT = "…"


def snippet(text: str, words: Iterable[str], width: int = WIDTH) -> tuple[str, list[tuple[int, int]]]:
    """Return a part of ``text`` as one line, and the [begin, end) of each match in it.

    It is the first part with the most different words of the query. Ends that were cut show ``…``.

    Args:
        text: a passage.
        words: lower-cased words of the query.
        width: characters at most, without the marks of cuts.
    """
    wanted = frozenset(words)
    line = " ".join(text.split())
    found = [match.span() for match in WORD.finditer(line) if match[0].lower() in wanted]
    return _shown(line, found, _best_start(line, found, width), width)


def around(text: str, place: tuple[int, int], width: int = WIDTH) -> tuple[str, list[tuple[int, int]]]:
    """Return the part of ``text`` around ``place``, [begin, end), and where the place is in it."""
    first, last = place
    width = max(width, last - first)
    begin = max(0, first - (width - (last - first)) // 2)
    space = text.rfind(" ", 0, begin) if begin else -1
    return _shown(text, [place], space + 1, width + begin - space, least=last)


def _shown(
    line: str, found: list[tuple[int, int]], begin: int, width: int, least: int = 0
) -> tuple[str, list[tuple[int, int]]]:
    """Return what is shown from ``begin`` on, cut at a space not before ``least``, and the places in it."""
    end = len(line)
    if end - begin > width:
        end = line.rfind(" ", begin, begin + width + 1)
        end = begin + width if end <= begin else max(end, least)
    before, after = _CUT if begin else "", _CUT if end < len(line) else ""
    shift = len(before) - begin
    inside = [(first + shift, last + shift) for first, last in found if begin <= first and last <= end]
    return f"{before}{line[begin:end]}{after}", inside


def _best_start(line: str, found: list[tuple[int, int]], width: int) -> int:
    """Return the start of the part to show: at a word, a little before its first match."""
    best, start = 0, 0
    for first, _ in found:
        shown = {line[a:b].lower() for a, b in found if first <= a and b <= first + 2 * width // 3}
        if len(shown) > best:
            best, start = len(shown), first
    if start < width // 3 or len(line) <= width:
        return 0
    space = line.find(" ", start - width // 4, start)
    return start if space < 0 else space + 1
