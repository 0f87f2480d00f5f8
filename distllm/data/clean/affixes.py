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

_PUNCTUATION = "… …… , : ; ! ? ¿ ؟ ¡ ( ) [ ] { } < > _ # * & 。 ？ ！ ， 、 ； ： ～ · । ، ۔ ؛ ٪"
_QUOTES = "' \" ” “ ` ‘ ´ ’ ‚ , „ » « 「 」 『 』 （ ） 〔 〕 【 】 《 》 〈 〉 〈 〉 ⟦ ⟧"
_CURRENCY = "$ £ € ¥ ฿ US$ C$ A$ ₽ ﷼ ₴ ₠ ₡ ₢ ₣ ₤ ₥ ₦ ₧ ₨ ₩ ₪ ₫ ₭ ₮ ₯ ₰ ₱ ₲ ₳ ₵ ₶ ₷ ₸ ₹ ₺ ₻ ₼ ₾ ₿"
_UNITS = """
km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa
Pa mbar mb MB kb KB gb GB tb TB T G M K % км км² км³ м м² м³ дм дм² дм³ см см² см³ мм мм² мм³ нм кг г мг м/с
км/ч кПа Па мбар Кб КБ кб Мб МБ мб Гб ГБ гб Тб ТБ كم² كم³ م م² م³ سم سم² سم³ مم مم² مم³ كم غرام جرام جم كغ
ملغ كوب اكواب
"""


class Rules(NamedTuple):
    """How to split chunks.

    ``specials`` are chunks with words of their own; ``contracted`` those of them that are several words of
    letters alone; ``respelled`` those that other rules would split, all of which begin with two characters
    of ``heads``, and none is longer than ``longest``.
    ``prefix`` matches at the start of a chunk, ``suffix`` at the start of a chunk written backwards;
    ``address`` matches what stays whole.
    """

    specials: dict[str, Words]
    contracted: frozenset[str]
    respelled: frozenset[str]
    heads: frozenset[str]
    longest: int
    prefix: Pattern
    suffix: Pattern
    infix: Pattern
    address: Pattern


@cache
def make_rules() -> Rules:
    """Return the rules, compiled once a process."""
    prefix, suffix, infix = _prefix(), _suffix(), _infix()
    specials = make_specials()
    contracted = frozenset(chunk for chunk, words in specials.items() if len(words) > 1 and chunk.isalpha())
    respelled = frozenset(
        chunk
        for chunk in specials
        if len(chunk) > 1 and (prefix.match(chunk) or suffix.match(chunk[::-1]) or infix.search(chunk))
    )
    return Rules(
        specials=specials,
        contracted=contracted,
        respelled=respelled,
        heads=frozenset(chunk[:2] for chunk in respelled),
        longest=max(map(len, respelled)),
        prefix=prefix,
        suffix=suffix,
        infix=infix,
        address=_address(),
    )


def _letter(without: str = "") -> str:
    return f"[^\\W\\d_{_NUMBERS}{without}]"


def _small() -> str:
    """Match a letter that is lower case or of a script without cases."""
    return _letter("".join(c for c in map(chr, _CASED) if c.isupper()))


def _capital() -> str:
    """Match a letter that is upper case or of a script without cases."""
    return _letter("".join(c for c in map(chr, _CASED) if c.islower()))


def _prefix() -> Pattern:
    single = _class("§ % = — –", _PUNCTUATION, _QUOTES, _CURRENCY, symbols=True)
    longer = [mark for mark in _CURRENCY.split() if len(mark) > 1]
    return re.compile("|".join([single, r"\.\.+", r"\+(?![0-9])", *map(re.escape, longer)]))


def _suffix() -> Pattern:
    """Return what matches a suffix that is written backwards, the longest of those that there are."""
    before_dot = f"{_small()}|[0-9%²+|-]|{_class(_QUOTES, _PUNCTUATION)}"
    marks = [*_CURRENCY.split(), *_UNITS.split()]
    amounts = "|".join(re.escape(mark[::-1]) for mark in marks)
    near_digit = f"(?=[^0-9]{{1,{max(map(len, marks))}}}[0-9])"  # far sooner told than that no mark matches
    rest = [
        *(r"\.\.+", "……", "[sS]['’]", rf"{near_digit}(?:{amounts})(?=[0-9])", r"\+(?=[0-9])"),
        rf"\.(?=[FfCcKk]°|{before_dot}|{_capital()}{_capital()})",
        _class("— –", _PUNCTUATION, _QUOTES, symbols=True),
    ]
    return re.compile("|".join(rest))


def _infix() -> Pattern:
    """Return what matches an infix: one of a class of characters, then what must be before and behind it."""
    letter, small, capital, quote = _letter(), _small(), _capital(), _class(_QUOTES)
    mark = r"[.+\-*^,~:<>=/\x80-\U0010ffff]"  # a class that is fast to test; the conditions are exact
    conditions = [
        f"(?<={letter}[-–—~:<>=/]|[0-9][-–—~:<>=/])(?={letter})",
        *(r"(?<=\.)\.+", r"(?<=[0-9][+\-*^])(?=[0-9-])"),
        rf"(?<={small}\.|{quote}\.)(?={capital}|{quote})",
        f"(?<={letter},)(?={letter})",
        f"(?<={letter}-|[0-9]-)--?(?={letter})",
        f"(?<={letter}—|[0-9]—)—(?={letter})",
        f"(?<={_class('…', symbols=True)})",
    ]
    return re.compile(f"{mark}(?:{'|'.join(conditions)})")


def _class(*marks: str, symbols: bool = False) -> str:
    """Match one character: those of ``marks`` that are one character, and symbols."""
    found = [mark for mark in " ".join(marks).split() if len(mark) == 1]
    return f"[{''.join(map(re.escape, found))}{_symbols() if symbols else ''}]"


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
def _symbols() -> str:
    """Return the ranges of the Unicode category So, such as arrows and emoji."""
    found = [c for c in _BEYOND_ASCII if unicodedata.category(chr(c)) == "So"]
    firsts = [c for c, before in zip(found, [0, *found], strict=False) if c != before + 1]
    lasts = [c for c, after in zip(found, [*found[1:], 0], strict=True) if c != after - 1]
    return "".join(f"{chr(a)}-{chr(b)}" for a, b in zip(firsts, lasts, strict=True))
