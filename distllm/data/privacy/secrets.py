"""Credentials: tokens with a vendor's prefix, assignments of secrets, private keys."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from distllm.data.privacy.page import Page, Span

_WORD = "[A-Za-z0-9_-]"
# (prefix, the whole token). A token begins at the start of a word, so that a text which
# repeats a prefix takes linear time.
_TOKENS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (prefix, re.compile(rf"(?<![A-Za-z0-9_]){re.escape(prefix)}{rest}(?![A-Za-z0-9_])"))
    for prefixes, rest in (
        ("AKIA ASIA AGPA AIDA AROA", "[A-Z0-9]{16}"),  # AWS
        ("ghp_ gho_ ghu_ ghs_ ghr_", "[A-Za-z0-9]{36,255}+"),  # GitHub
        ("github_pat_", "[A-Za-z0-9_]{60,255}+"),
        ("glpat-", f"{_WORD}{{20,300}}+"),  # GitLab
        ("xoxb- xoxp- xoxa- xoxr- xoxs- xoxe-", "[A-Za-z0-9-]{20,255}+"),  # Slack
        ("sk_live_ sk_test_ rk_live_ rk_test_ pk_live_ whsec_", "[A-Za-z0-9]{20,255}+"),  # Stripe
        ("AIza", f"{_WORD}{{35}}"),  # Google
        ("GOCSPX-", f"{_WORD}{{28}}"),
        ("ya29.", f"{_WORD}{{40,1024}}+"),
        (
            "sk-",
            f"(?:(?:proj|svcacct|admin|ant|or)-{_WORD}{{32,300}}+|[A-Za-z0-9]{{32,64}}+)",
        ),  # OpenAI, Anthropic
        ("hf_ npm_", "[A-Za-z0-9]{30,40}+"),
        ("SG.", f"{_WORD}{{16,32}}+\\.{_WORD}{{32,64}}+"),  # SendGrid
        ("eyJ", f"{_WORD}{{8,4096}}+\\.eyJ{_WORD}{{4,16384}}+\\.{_WORD}{{16,4096}}+"),  # JWT (RFC 7519)
    )
    for prefix in prefixes.split()
)

_ASSIGNED = re.compile(r"[=:][ \t]{0,2}[\"'`]?([A-Za-z0-9+/_.~-]{16,512}+={0,2})(?![A-Za-z0-9+/_.~(\[-])")
_NAMED_SECRET = re.compile(
    r"(?:secret|token|passw(?:or)?d|pwd|api[_ -]?key|access[_ -]?key|auth[_ -]?key|private[_ -]?key|"
    r"client[_ -]?key|credential|bearer)[A-Za-z_]{0,12}[\"'`\])]{0,2}\s{0,2}$",
    re.IGNORECASE,
)
_FILE = re.compile(r"\.(?:pem|key|crt|cer|der|pub|p12|pfx|jks|txt|json|ya?ml|conf|env)$", re.IGNORECASE)
_MIN_ENTROPY = 3.2  # bits a character: random base64 of 16 has about 3.8, words and paths about 3

_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_END = re.compile(r"-----END (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
# Atomic groups, not possessive repeats: before Python 3.11.5 those forget how their group may backtrack.
_KEY_LINES = re.compile(
    r"(?>(?:(?>(?:\r?\n|\\r|\\n|[ \t>])*)(?:(?:Proc-Type|DEK-Info|Version|Comment|Hash): [^\n\\]{1,80}+"
    r"|[A-Za-z0-9+/]{20,4096}+={0,2}|=[A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{1,75}+(?:={1,2}|(?=\s*-----END))))*)"
)
_LAST_GAP = re.compile(r"(?>(?:\s|\\r|\\n|>){0,16})")
_KEY_LINE = re.compile(r"[ \t>]*[A-Za-z0-9+/]{20,4096}={0,2}\s*")
_LAST_KEY_LINE = re.compile(r"[ \t>]*[A-Za-z0-9+/]{1,4096}={0,2}\s*")
_MAX_KEY_LINES = 200


def find_api_keys(page: Page) -> Iterator[Span]:
    """Yield vendors' tokens, JSON web tokens, and random values that are assigned to a secret's name."""
    text = page.text
    found = [
        match.span() for prefix, pattern in _TOKENS if prefix in text for match in pattern.finditer(text)
    ]
    found += [
        match.span(1)
        for match in _ASSIGNED.finditer(text)
        if _NAMED_SECRET.search(text[max(0, match.start() - 48) : match.start()])
        and _is_random(match.group(1))
    ]
    free = 0
    for start, stop in sorted(found):
        if start >= free:
            yield start, stop
            free = stop


def _is_random(value: str) -> bool:
    """Return whether ``value`` mixes letters and digits, repeats few characters and names no file."""
    if not (any(map(str.isdigit, value)) and any(map(str.isalpha, value))) or _FILE.search(value):
        return False
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts) >= _MIN_ENTROPY


def find_private_keys(page: Page) -> Iterator[Span]:
    """Yield PEM and PGP private keys, also if the beginning or the end is cut off."""
    text, free = page.text, 0
    if "PRIVATE KEY" not in text:
        return
    for mark in sorted([*_BEGIN.finditer(text), *_END.finditer(text)], key=re.Match.start):
        if mark.start() < free:
            continue
        if mark.group().startswith("-----BEGIN"):
            lines = _KEY_LINES.match(text, mark.end())
            free = lines.end() if lines else mark.end()
            gap = _LAST_GAP.match(text, free)
            end = _END.match(text, gap.end() if gap else free)
            free = end.end() if end else free
            if free > mark.end():
                yield mark.start(), free
        else:
            start = _key_start(text, mark.start(), free)
            free = mark.end()
            if start < mark.start():
                yield start, free


def _key_start(text: str, end: int, free: int) -> int:
    """Return where the lines of a key begin that end before ``end``; its first marker is lost."""
    start = end
    form = _LAST_KEY_LINE
    for _ in range(_MAX_KEY_LINES):
        line = text.rfind("\n", max(free, start - 4200), max(free, start - 1)) + 1
        line = max(line, free)
        if line >= start or not form.fullmatch(text, line, start):
            break
        start, form = line, _KEY_LINE
    return start
