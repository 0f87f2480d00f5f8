"""How chunks of text without spaces are split into words: prefixes, suffixes, infixes, addresses.

The expressions are those of spaCy 3.8 for English (MIT licence), with letters and symbols taken from
Python's Unicode tables.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import NamedTuple

from distllm.data.clean.specials import make_specials

Words = tuple[str, ...]
Pattern = re.Pattern[str]

_CASED = range(0x530)
_BEYOND_ASCII = range(0x80, 0x20000)
_NUMBERS = "²³¹¼½¾"

_PUNCTUATION = r"… …… , : ; ! \? ¿ ؟ ¡ \( \) \[ \] \{ \} < > _ \# \* & 。 ？ ！ ， 、 ； ： ～ · । ، ۔ ؛ ٪"
_QUOTES = "' \" ” “ ` ‘ ´ ’ ‚ , „ » « 「 」 『 』 （ ） 〔 〕 【 】 《 》 〈 〉 〈 〉 ⟦ ⟧"
_ELLIPSES = r"\.\.+ …"
_HYPHENS = "-|–|—|--|---|——|~"
_CURRENCY = r"\$ £ € ¥ ฿ US\$ C\$ A\$ ₽ ﷼ ₴ ₠ ₡ ₢ ₣ ₤ ₥ ₦ ₧ ₨ ₩ ₪ ₫ ₭ ₮ ₯ ₰ ₱ ₲ ₳ ₵ ₶ ₷ ₸ ₹ ₺ ₻ ₼ ₾ ₿"
_UNITS = """
km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa
Pa mbar mb MB kb KB gb GB tb TB T G M K % км км² км³ м м² м³ дм дм² дм³ см см² см³ мм мм² мм³ нм кг г мг м/с
км/ч кПа Па мбар Кб КБ кб Мб МБ мб Гб ГБ гб Тб ТБ كم² كم³ م م² م³ سم سم² سم³ مم مم² مم³ كم غرام جرام جم كغ
ملغ كوب اكواب
"""


class Rules(NamedTuple):
    """How to split chunks.

    ``specials`` are chunks with words of their own; ``respelled`` those of them that other rules would
    split; ``address`` matches what stays whole.
    """

    specials: dict[str, Words]
    respelled: frozenset[str]
    prefix: Pattern
    suffix: Pattern
    infix: Pattern
    address: Pattern


@cache
def make_rules() -> Rules:
    """Return the rules, compiled once a process."""
    prefix, suffix, infix = _prefix(), _suffix(), _infix()
    specials = make_specials()
    respelled = frozenset(
        chunk for chunk in specials if prefix.match(chunk) or suffix.search(chunk) or infix.search(chunk)
    )
    return Rules(specials, respelled, prefix, suffix, infix, _address())


def _letter(without: str = "") -> str:
    return f"[^\\W\\d_{_NUMBERS}{without}]"


def _small() -> str:
    """Match a letter that is lower case or of a script without cases."""
    return _letter("".join(c for c in map(chr, _CASED) if c.isupper()))


def _capital() -> str:
    """Match a letter that is upper case or of a script without cases."""
    return _letter("".join(c for c in map(chr, _CASED) if c.islower()))


def _quote() -> str:
    return "[" + "".join(_QUOTES.split()) + "]"


def _prefix() -> Pattern:
    first = ["§", "%", "=", "—", "–", r"\+(?![0-9])"]
    marks = [*_PUNCTUATION.split(), *_ELLIPSES.split(), *_QUOTES.split(), *_CURRENCY.split()]
    return re.compile("|".join((*first, *marks, _symbol())))


def _suffix() -> Pattern:
    marks = [*_PUNCTUATION.split(), *_ELLIPSES.split(), *_QUOTES.split(), _symbol()]
    before_dot = f"{_small()}|[0-9%²+|-]|{_quote()}|{_PUNCTUATION.replace(' …… ', ' ').replace(' ', '|')}"
    rest = [
        *("'s", "'S", "’s", "’S", "—", "–", r"(?<=[0-9])\+", r"(?<=°[FfCcKk])\."),
        f"(?<=[0-9])(?:{_CURRENCY.replace(' ', '|')})",
        f"(?<=[0-9])(?:{'|'.join(_UNITS.split())})",
        rf"(?<={before_dot})\.",
        rf"(?<={_capital()}{_capital()})\.",
    ]
    return re.compile("|".join(f"(?:{mark})$" for mark in (*marks, *rest)))


def _infix() -> Pattern:
    letter, small, capital, quote = _letter(), _small(), _capital(), _quote()
    marks = [
        *_ELLIPSES.split(),
        _symbol(),
        r"(?<=[0-9])[+\-*^](?=[0-9-])",
        rf"(?<={small}|{quote})\.(?={capital}|{quote})",
        rf"(?<={letter}),(?={letter})",
        rf"(?<={letter}|[0-9])(?:{_HYPHENS})(?={letter})",
        rf"(?<={letter}|[0-9])[:<>=/](?={letter})",
    ]
    return re.compile("|".join(marks))


def _address() -> Pattern:
    """Return what matches the address of a site, a page or a mailbox (after Diego Perini, MIT licence)."""
    host = "[A-Za-z0-9\u00a1-\uffff]"
    return re.compile(
        r"(?:[\w+\-.]{2,}://)?(?:\S+(?::\S*)?@)?(?:"
        r"(?!(?:10|127)(?:\.\d{1,3}){3})(?!(?:169\.254|192\.168)(?:\.\d{1,3}){2})"
        r"(?!172\.(?:1[6-9]|2\d|3[0-1])(?:\.\d{1,3}){2})"
        r"(?:[1-9]\d?|1\d\d|2[01]\d|22[0-3])(?:\.(?:1?\d{1,2}|2[0-4]\d|25[0-5])){2}"
        r"(?:\.(?:[1-9]\d?|1\d\d|2[0-4]\d|25[0-4]))"
        rf"|(?:(?:{host}{host[:-1]}_-]{{0,62}})?{host}\.)+{_small()}{{2,63}}"
        r")(?::\d{2,5})?(?:[/?#]\S*)?$"
    )


@cache
def _symbol() -> str:
    """Match a character of the Unicode category So, such as an arrow or emoji."""
    found = [c for c in _BEYOND_ASCII if unicodedata.category(chr(c)) == "So"]
    firsts = [c for c, before in zip(found, [0, *found], strict=False) if c != before + 1]
    lasts = [c for c, after in zip(found, [*found[1:], 0], strict=True) if c != after - 1]
    return "[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in zip(firsts, lasts, strict=True)) + "]"
