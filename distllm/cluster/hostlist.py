"""SLURM's notation for many hosts, such as ``n[1-3,07],login``, without SLURM's commands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from distllm.errors import ConfigError

_PART = re.compile(r"([^\[\],]*)\[([^\[\]]*)\]")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_NUMBERED = re.compile(r"(.*?)(\d+)")
MAX_HOSTS = 100_000


def expand(text: str) -> list[str]:
    """Return the hosts that ``text`` names, in its order.

    Raises:
        ConfigError: brackets that do not match, a range that runs backwards, or too many hosts.
    """
    hosts: list[str] = []
    for part in _split(text):
        for host in _expand_part(part, text):
            hosts.append(host)
            if len(hosts) > MAX_HOSTS:
                raise _unreadable(text)
    return hosts


def compress(hosts: Iterable[str]) -> str:
    """Return the hosts in SLURM's notation, sorted: ``n1 n2 n3 n7`` as ``n[1-3,7]``."""
    plain: list[str] = []
    numbered: dict[tuple[str, int], list[int]] = {}
    for host in sorted(set(hosts)):
        match = _NUMBERED.fullmatch(host)
        if match is None:
            plain.append(host)
        else:
            numbered.setdefault((match[1], len(match[2])), []).append(int(match[2]))
    parts = list(plain)
    for (prefix, width), numbers in sorted(numbered.items()):
        spans = [
            f"{low:0{width}d}" + (f"-{high:0{width}d}" if high > low else "")
            for low, high in _spans(sorted(numbers))
        ]
        single = len(spans) == 1 and "-" not in spans[0]
        parts.append(f"{prefix}{spans[0]}" if single else f"{prefix}[{','.join(spans)}]")
    return ",".join(parts)


def _split(text: str) -> Iterator[str]:
    """Yield the parts between commas outside of brackets."""
    depth, part = 0, ""
    for character in text.strip():
        depth += (character == "[") - (character == "]")
        if depth not in (0, 1):
            raise _unreadable(text)
        if character == "," and depth == 0:
            yield part
            part = ""
        else:
            part += character
    if depth:
        raise _unreadable(text)
    if part:
        yield part


def _expand_part(part: str, text: str) -> Iterator[str]:
    match = _PART.match(part)
    if match is None:
        yield part
        return
    rest = part[match.end() :]
    for span in match[2].split(","):
        bounds = _RANGE.fullmatch(span.strip())
        if bounds is None:
            raise _unreadable(text)
        low, high = int(bounds[1]), int(bounds[2] or bounds[1])
        if high < low or high - low >= MAX_HOSTS:
            raise _unreadable(text)
        for number in range(low, high + 1):
            for tail in _expand_part(rest, text):
                yield f"{match[1]}{number:0{len(bounds[1])}d}{tail}"


def _spans(numbers: list[int]) -> Iterator[tuple[int, int]]:
    low = high = numbers[0]
    for number in numbers[1:]:
        if number > high + 1:
            yield low, high
            low = number
        high = number
    yield low, high


def _unreadable(text: str) -> ConfigError:
    return ConfigError(
        f"{text!r} is not a list of hosts",
        where="list of hosts",
        remedy="write it in SLURM's notation: n[1-4,7],n12",
    )
