"""E-mail and IP addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from distllm.data.privacy.page import Page, Span

_LOCAL_BACKWARDS = re.compile(r"[A-Za-z0-9._%+'\-]{1,64}+")
_LETTER = "A-Za-z\u00c0-\u024f"
_DOMAIN = re.compile(
    rf"(?:[{_LETTER}0-9](?:[{_LETTER}0-9\-]{{0,62}}+)\.){{1,8}}[A-Za-z]{{2,24}}(?![A-Za-z0-9])"
)
_FILES = frozenset(
    {"png", "jpg", "jpeg", "gif", "svg", "webp", "bmp", "ico", "js", "mjs", "ts", "jsx", "tsx", "css", "scss",
     "html", "htm", "json", "yaml", "yml", "xml", "md", "txt", "py", "rs", "go", "java", "cpp", "hpp", "so",
     "dll", "exe", "zip", "gz", "pdf", "service", "socket", "timer"}
)  # fmt: skip

_IPV4 = re.compile(r"[0-9]{1,3}+\.[0-9]{1,3}+\.[0-9]{1,3}+\.[0-9]{1,3}+(?![0-9A-Za-z])(?!\.[0-9])")
_NUMBERED = re.compile(
    r"(?:\b(?:v|ver|vers|version|versione|versión|release|rv|build|firmware|section|sect|sec|chapter|clause|"
    r"article|appendix|figure|fig|table|rule|kapitel|abschnitt|chapitre|oid|patch|update|revision|rev|driver)"
    r"\.?[\s:=#\"']{0,3}|[=<>~^§v@]\s?|\b[A-Za-z][A-Za-z0-9]*[_-]|(?-i:\b[A-Z][A-Za-z]+/))$",
    re.IGNORECASE,
)
# Sections and versions have small numbers, of which one public address in some thousand has nothing else.
_SMALL = 32
_BEFORE = 32
_ADDRESSING = re.compile(
    r"(?:\b(?:ip|ipv4|dns|ns|inet|addr|host|server|nameserver|resolver|client|peer|router|gateway|subnet|ping)"
    r"|addresse?s?|adressen?|direcci[oó]n|indirizzo)[\s:=(\"'\[<]{1,4}(?:(?:is|at|of|ist|lautet|est|es)\s)?$"
    r"|地址\s{0,2}[为是：:]?\s{0,2}$",
    re.IGNORECASE,
)
_IN_A_NETWORK = re.compile(r"/[0-9]{1,2}(?![0-9A-Za-z/])|:[0-9]{1,5}(?![0-9A-Za-z])")
_IPV6_INSIDE = re.compile(r":[0-9A-Fa-f]{0,4}+:")
_IPV6_BACKWARDS = re.compile(r"[0-9A-Fa-f]{0,4}+")
_IPV6 = re.compile(r"[0-9A-Fa-f]{0,4}+(?::[0-9A-Fa-f]{0,4}+){2,7}+(?:(?<=:)[0-9]{1,3}(?:\.[0-9]{1,3}){3})?")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


def find_emails(page: Page) -> Iterator[Span]:
    """Yield addresses with a dotted domain; not `git@host:path`, `name@2x.png` or `package@1.2.3`."""
    text, free = page.text, 0
    at = text.find("@")
    while at >= 0:
        span = _email_around(text, at, free)
        if span is not None:
            yield span
            free = span[1]
        at = text.find("@", max(free, at + 1))


def _email_around(text: str, at: int, free: int) -> Span | None:
    """Return the address whose ``@`` stands at ``at``; it may begin at ``free``."""
    local = _LOCAL_BACKWARDS.match(text[max(free, at - 64) : at][::-1])
    domain = _DOMAIN.match(text, at + 1, at + 256)
    if local is None or domain is None:
        return None
    name = local.group()[::-1].lstrip(".-'%")
    top = domain.group().rpartition(".")[2].lower()
    remote = name == "git" and text[domain.end() : domain.end() + 1] in (":", "/")
    if not name or name[-1] in ".'" or top in _FILES or remote:
        return None
    return at - len(name), domain.end()


def find_ips(page: Page) -> Iterator[Span]:
    """Yield IPv4 and IPv6 addresses: those that are public, or all of them, as configured."""
    found = sorted([*_ipv4(page), *_ipv6(page)])
    free = 0
    for start, stop in found:
        if start >= free:
            yield start, stop
            free = stop


def _ipv4(page: Page) -> Iterator[Span]:
    """Yield dotted quads that are not versions, sections or parts of longer dotted numbers."""
    text = page.text
    for match in _IPV4.finditer(text):
        start = match.start()
        before = text[max(0, start - _BEFORE) : start]
        if _in_word(before[-1:]) or before[-1:] in ("_", ".", "-") or _NUMBERED.search(before[-16:]):
            continue
        try:
            address = ipaddress.IPv4Address(match.group())
        except ipaddress.AddressValueError:
            continue
        said = _ADDRESSING.search(before) or _IN_A_NETWORK.match(text, match.end())
        if address.is_global and _looks_like_version(address) and not said:
            continue
        if page.config.private_ips or address.is_global:
            yield match.span()


def _looks_like_version(address: ipaddress.IPv4Address) -> bool:
    """Return whether a dotted quad without context is more likely a section or a version."""
    return len(set(address.packed)) > 1 and max(address.packed) < _SMALL


def _in_word(neighbour: str) -> bool:
    """Return whether a neighbouring character (or none) joins; scripts without spaces do not."""
    return neighbour.isascii() and neighbour.isalnum()


def _ipv6(page: Page) -> Iterator[Span]:
    text, free = page.text, 0
    for inside in _IPV6_INSIDE.finditer(text):
        if inside.start() < free:
            continue
        backwards = _IPV6_BACKWARDS.match(text[max(free, inside.start() - 4) : inside.start()][::-1])
        start = inside.start() - (backwards.end() if backwards else 0)
        match = _IPV6.match(text, start)
        if match is None or _in_word(text[max(0, start - 1) : start]):
            continue
        free = match.end()
        written = match.group()
        if written.endswith(":") and not written.endswith("::"):
            written = written[:-1]
        stop = start + len(written)
        if not _in_word(text[stop : stop + 1]) and _is_ipv6(written, page.config.private_ips):
            yield start, stop


def _is_ipv6(written: str, private: bool) -> bool:
    """Return whether this is an IPv6 address to find, and not words that code joins by ``::``."""
    try:
        address = ipaddress.IPv6Address(written)
    except ipaddress.AddressValueError:
        return False
    if not any(map(str.isdigit, written)):
        return False
    return private or (address in _GLOBAL_UNICAST and address.is_global)
