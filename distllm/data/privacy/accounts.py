"""Credit cards and bank accounts: numbers with check digits (ISO/IEC 7812, ISO 13616)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from distllm.data.privacy.page import Page, Span

# Not inside a word, a decimal, a date or a longer number with separators, nor after a plus.
ALONE_BEFORE = r"(?<![0-9A-Za-z_+])(?<![0-9][.,/\-])"
ALONE_AFTER = r"(?![0-9A-Za-z_])(?![.,/\-][0-9])"
_GAP = "[ \u00a0\\-]"

_CARD = re.compile(
    # In groups it must not be part of a row of a table.
    rf"{ALONE_BEFORE}(?:[0-9]{{13,19}}+"
    rf"|(?<![0-9] )(?<![0-9]  )(?:"
    rf"[0-9]{{4}}({_GAP})[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{4}}(?:\1[0-9]{{3}}(?![0-9]))?"
    rf"|[0-9]{{4}}({_GAP})[0-9]{{6}}\2[0-9]{{4,5}})(?! {{1,2}}[0-9]{{4}}(?![0-9/]))){ALONE_AFTER}"
)
# (first prefix, last prefix, lengths): the issuers' ranges of ISO/IEC 7812.
_ISSUERS: tuple[tuple[int, int, range], ...] = (
    (4, 4, range(13, 20, 3)),  # Visa
    (51, 55, range(16, 17)),  # Mastercard
    (2221, 2720, range(16, 17)),
    (34, 34, range(15, 16)),  # American Express
    (37, 37, range(15, 16)),
    (300, 305, range(14, 17)),  # Diners Club
    (36, 36, range(14, 17)),
    (38, 39, range(14, 17)),
    (6011, 6011, range(16, 20)),  # Discover
    (644, 659, range(16, 20)),
    (3528, 3589, range(16, 20)),  # JCB
    (62, 62, range(16, 20)),  # UnionPay
    (2200, 2204, range(16, 20)),  # Mir
)
_IBAN_START = re.compile(rf"{ALONE_BEFORE}(?:[A-Z]{{2}}|[a-z]{{2}})[0-9]{{2}}")
_IBAN_BODY = re.compile("(?>(?:[ \u00a0\\-]?[A-Za-z0-9]){11,30})")
_GROUPED = re.compile("[A-Za-z0-9]{4}[ \u00a0\\-]")
_IBAN_LENGTHS: dict[str, int] = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU XK MN",
        21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV", 29: "BR EG PS QA UA",
        30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip


def find_credit_cards(page: Page) -> Iterator[Span]:
    """Yield numbers of an issuer's range and length whose Luhn digit is right."""
    return page.among_digits(_CARD, lambda match: is_card(re.sub(r"[^0-9]", "", match.group())))


def is_card(digits: str) -> bool:
    """Return whether ``digits`` can be the number of a payment card."""
    issued = any(
        first <= int(digits[: len(str(first))]) <= last and len(digits) in lengths
        for first, last, lengths in _ISSUERS
    )
    return issued and len(set(digits)) > 1 and luhn_sum(digits) % 10 == 0


def luhn_sum(digits: str) -> int:
    """Return the Luhn sum, a multiple of ten if the last digit is the right check digit."""
    return sum(map(int, digits[-1::-2])) + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])


def find_ibans(page: Page) -> Iterator[Span]:
    """Yield account numbers of the length of their country and with right check digits."""
    for start, stop in page.windows:
        position = start
        while match := _IBAN_START.search(page.text, position, stop):
            end = _iban_end(page.text, match)
            if end is not None:
                yield match.start(), end
            position = match.end() if end is None else end


def _iban_end(text: str, head: re.Match[str]) -> int | None:
    """Return where the IBAN ends that begins with ``head``, or None if it is none."""
    length = _IBAN_LENGTHS.get(head.group()[:2].upper())
    body = _IBAN_BODY.match(text, head.end(), head.end() + 70)
    if length is None or body is None:
        return None
    places = [place for place, letter in enumerate(body.group(), head.end() + 1) if letter.isalnum()]
    if len(places) < length - 4:
        return None
    end = places[length - 5]
    written, after = text[head.start() : end], text[end : end + 1]
    joined = re.sub(r"[^A-Za-z0-9]", "", written).upper()
    if after.isascii() and after.isalnum():
        return None
    if written not in (written.upper(), written.lower()) or not (
        joined == written.upper() or _GROUPED.match(written)
    ):
        return None
    return end if is_iban(joined) else None


def is_iban(joined: str) -> bool:
    """Return whether the check digits of ``joined`` (capitals and digits, no gaps) are right."""
    turned = joined[4:] + joined[:4]
    return int("".join(str(int(letter, 36)) for letter in turned)) % 97 == 1
