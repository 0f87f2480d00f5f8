"""National identity and tax numbers, each with the check its country defines."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Callable, Iterator

from distllm.data.privacy.accounts import ALONE_AFTER, ALONE_BEFORE
from distllm.data.privacy.page import Page, Span

_SPANISH = "TRWAGMYFPDXBNJZSQVHLCKE"
_CHINESE_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_ITALIAN_MONTHS = "ABCDEHLMPRST"
_OMOCODE = "LMNPQRSTUV"  # letters that stand for 0-9 where two people would share a code
_ITALIAN_ODD = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21,
         2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
        strict=True,
    )
)  # fmt: skip


def is_us_ssn(number: str) -> bool:
    """Return whether area, group and serial were ever issued (SSA rules; there is no check digit)."""
    area, group, serial = number[:3], number[3:5], number[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def is_uk_nino(number: str) -> bool:
    """Return whether the prefix is one that HMRC gives out."""
    return number[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def is_french_nir(number: str) -> bool:
    """Return whether the key is 97 minus the number modulo 97; Corsica counts as 19 and 18."""
    body = number[:13].replace("2A", "19").replace("2B", "18")
    return body.isdigit() and 97 - int(body) % 97 == int(number[13:])


def is_german_tax_id(number: str) -> bool:
    """Return whether exactly one of ten digits repeats (2 or 3 times) and ISO 7064 MOD 11,10 holds."""
    repeats = [count for count in Counter(number[:10]).values() if count > 1]
    product = 10
    for digit in number[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return len(repeats) == 1 and repeats[0] <= 3 and (11 - product) % 10 == int(number[10])


def is_spanish_id(number: str) -> bool:
    """Return whether the letter of a DNI, or of an NIE (X, Y, Z stand for 0, 1, 2), is right."""
    digits = number[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2")
    return _SPANISH[int(digits) % 23] == number[-1]


def is_italian_code(number: str) -> bool:
    """Return whether the last letter of a codice fiscale is right (decree of 23 December 1976)."""
    even = sum(int(letter) if letter.isdigit() else ord(letter) - ord("A") for letter in number[1:15:2])
    odd = sum(_ITALIAN_ODD[letter] for letter in number[0:15:2])
    return chr(ord("A") + (even + odd) % 26) == number[15]


def is_chinese_id(number: str) -> bool:
    """Return whether the birthday exists and ISO 7064 MOD 11-2 holds (GB 11643-1999)."""
    try:
        datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    total = sum(weight * int(digit) for weight, digit in zip(_CHINESE_WEIGHTS, number[:17], strict=True))
    return "10X98765432"[total % 11] == number[17]


def _alone(body: str) -> re.Pattern[str]:
    return re.compile(ALONE_BEFORE + body + ALONE_AFTER)


_D = f"[0-9{_OMOCODE}]"
_FORMS: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = (
    (_alone(r"[1-9][0-9]{5}(?:19|20)[0-9]{9}[0-9Xx]"), is_chinese_id),
    (
        _alone(
            r"[12][ .]?[0-9]{2}[ .]?(?:0[1-9]|[1345][0-9]|6[0-2]|[2-9][0-9])[ .]?(?:[0-9]{2}|2[AB])[ .]?"
            r"[0-9]{3}[ .]?[0-9]{3}[ .\-/]{0,3}[0-9]{2}"
        ),
        is_french_nir,
    ),
    (
        _alone(
            rf"[A-Za-z]{{6}}{_D}{{2}}[{_ITALIAN_MONTHS}{_ITALIAN_MONTHS.lower()}]{_D}{{2}}[A-Za-z]{_D}{{3}}[A-Za-z]"
        ),
        is_italian_code,
    ),
    (_alone(r"[1-9][0-9](?: ?[0-9]{3}){3}"), is_german_tax_id),
    (_alone(r"(?:[0-9]{8}|[0-9]{2}\.[0-9]{3}\.[0-9]{3})[ \-]?[A-Za-z]"), is_spanish_id),
    (_alone(r"[XYZxyz][ \-]?[0-9]{7}[ \-]?[A-Za-z]"), is_spanish_id),
    (
        _alone(r"[ABCEGHJ-PRSTW-Z][ABCEGHJ-NPRSTW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]"),
        is_uk_nino,
    ),
    (_alone(r"[0-9]{3}-[0-9]{2}-[0-9]{4}"), is_us_ssn),
)
_SSN_SAID = re.compile(r"(?i:\bSSN|social security)[^0-9\n]{0,16}$")
_SSN_LOOSE = _alone(r"[0-9]{3} ?[0-9]{2} ?[0-9]{4}")


def find_national_ids(page: Page) -> Iterator[Span]:
    """Yield numbers of CN, FR, IT, DE, ES, GB and US; an SSN without hyphens only where it is named."""
    for pattern, check in _FORMS:
        yield from page.among_digits(pattern, lambda match, check=check: check(_joined(match)))  # type: ignore[misc]
    yield from page.among_digits(_SSN_LOOSE, lambda match: _said_ssn(page.text, match))


def _said_ssn(text: str, match: re.Match[str]) -> bool:
    before = text[max(0, match.start() - 40) : match.start()]
    return is_us_ssn(_joined(match)) and _SSN_SAID.search(before) is not None


def _joined(match: re.Match[str]) -> str:
    return re.sub(r"[^0-9A-Z]", "", match.group().upper())
