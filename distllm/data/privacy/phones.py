"""Phone numbers: a cheap pattern proposes, Google's numbering plans (`phonenumbers`) decide."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType

from distllm.data.privacy.page import Page, Span
from distllm.errors import ConfigError
from distllm.extras import require

_BREAK = "[ \u00a0().\\-/\u2010\u2011\u2013]"
_CANDIDATE = re.compile(
    r"(?<![0-9A-Za-z_+])(?<![0-9][.,/:\-])(?:\((?=\+?[0-9 ]{1,7}\)))?(?:\+ ?)?"
    rf"[0-9](?:{_BREAK}{{0,3}}[0-9]){{6,16}}"
    r"(?![0-9A-Za-z_])(?![.,:/\-][0-9])"
)
_GROUP = re.compile(r"[0-9]+")
_COLUMN_BEFORE, _COLUMN_AFTER = re.compile("[0-9][ \u00a0]{1,2}$"), re.compile("[ \u00a0]{1,2}[0-9]")
_TAIL = re.compile(r"[^0-9\n]{1,36}+")
_SAID = re.compile(
    r"(?<![A-Za-z<])(?:tel|phone|telephone|téléphone|telefon|teléfono|telefono|fon|fax|call|mobile|mobil|móvil|"
    r"movil|cell|cellulare|handy|handynummer|telefonnummer|portable|whatsapp|sms|hotline|text|ring|appelez|"
    r"rufen|rufnummer|llame|chiamare|chiama)\b.{0,16}$|(?:电话|手机|联系人|联系方式|热线|致电|拨打|☎|📞).{0,12}$",
    re.IGNORECASE,
)
# Layouts that no other number has: North America's with hyphens, dots or brackets; Chinese mobiles.
_SHAPES = {
    "US": re.compile(r"(?:1[ .\-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.\-])[2-9][0-9]{2}[ .\-][0-9]{4}$"),
    "CN": re.compile(r"1[3-9][0-9]([ \-])[0-9]{4}\1[0-9]{4}$"),
}
_LEAST_NATIONAL, _MOST_NATIONAL = 9, 12  # digits with the trunk prefix; the least without a word before


def check_regions(regions: tuple[str, ...]) -> None:
    """Check that every region has a numbering plan.

    Raises:
        ConfigError: one has none.
        MissingDependency: `phonenumbers` is not installed.
    """
    plans = require("phonenumbers", "replacing phone numbers (privacy.scrub)")
    for region in regions:
        if region not in plans.SUPPORTED_REGIONS:
            raise ConfigError(
                f"{region!r} is no region that has phone numbers",
                where="privacy.phone_regions",
                remedy="use two-letter codes of ISO 3166 in capitals, such as US, GB or DE",
            )


def find_phones(page: Page) -> Iterator[Span]:
    """Yield valid numbers: with a country code, in the layout of a region, or after a word for phone.

    Raises:
        MissingDependency: `phonenumbers` is not installed.
    """
    plans = require("phonenumbers", "replacing phone numbers (privacy.scrub)")
    for start, stop in page.windows:
        position = start
        while match := _CANDIDATE.search(page.text, position, stop):
            end = _phone_end(page, match, plans)
            if end is not None:
                yield match.start(), end
            position = match.start() + 1 if end is None else end


def _phone_end(page: Page, match: re.Match[str], plans: ModuleType) -> int | None:
    """Return where the number that begins here ends: after the last group with which it is valid."""
    written, before = match.group(), page.text[max(0, match.start() - 36) : match.start()]
    regions = page.config.phone_regions
    plus = written.lstrip("( ").startswith("+")
    said = _is_said(before)
    ends = [group.end() for group in _GROUP.finditer(written)]
    if said or plus:
        for end in reversed(ends[-6:]):
            number = written[:end]
            if _is_called(number, regions, plans) if said else _is_international(number, plans):
                return match.start() + end
        return None
    if _COLUMN_BEFORE.search(before):
        return None
    # Without a word before it a number takes all groups, or all up to a wide gap: else it is a table.
    wide = [
        end
        for end, group in zip(ends, _GROUP.finditer(written, ends[0]), strict=False)
        if group.start() - end > 2
    ]
    whole = [] if _COLUMN_AFTER.match(page.text, match.end()) else ends[-1:]
    for end in whole + wide[:1]:
        if _is_international(written[:end], plans) or _is_laid_out(written[:end], regions, plans):
            return match.start() + end
    return None


def _is_said(before: str) -> bool:
    """Return whether a word for phone comes before, without digits or line breaks in between."""
    tail = _TAIL.match(before[::-1])
    return tail is not None and _SAID.search(tail.group()[::-1]) is not None


def _is_called(written: str, regions: tuple[str, ...], plans: ModuleType) -> bool:
    digits = _digits(written)
    return _is_international(written, plans) or (
        7 <= len(digits) <= _MOST_NATIONAL and any(_is_valid(digits, region, plans) for region in regions)
    )


def _is_international(written: str, plans: ModuleType) -> bool:
    digits = _digits(written.replace("(0)", ""))
    if written.lstrip("( ").startswith("+"):
        return _is_valid("+" + digits, None, plans)
    separated = len(digits) < len(written)
    return separated and written.lstrip("( ").startswith("00") and _is_valid("+" + digits[2:], None, plans)


def _is_laid_out(written: str, regions: tuple[str, ...], plans: ModuleType) -> bool:
    """Return whether the groups are those of a region's own layout, or area code and the rest."""
    digits, groups = _digits(written), _GROUP.findall(written)
    for region, shape in _SHAPES.items():
        if region in regions and shape.match(written):
            return _is_valid(digits, region, plans)
    if not digits.startswith("0") or len(groups) < 2 or len(groups[0]) < 2:
        return False
    if not _LEAST_NATIONAL <= len(digits) <= _MOST_NATIONAL:
        return False
    for region in regions:
        usual = _usual_groups(digits, region, plans)
        if usual[:1] == groups[:1] and (len(groups) == 2 or _is_even(groups, usual)):
            return True
    return False


def _is_even(groups: list[str], usual: list[str]) -> bool:
    """Return whether the area code is followed by the usual groups, or by pairs, triples and fours."""
    return groups == usual or all(2 <= len(group) <= 4 for group in groups[1:])


def _digits(written: str) -> str:
    return re.sub(r"[^0-9]", "", written)


@lru_cache(maxsize=1 << 14)
def _is_valid(digits: str, region: str | None, plans: ModuleType) -> bool:
    try:
        number = plans.parse(digits, region)
    except plans.NumberParseException:
        return False
    if not plans.is_valid_number(number):
        return False
    shared = region == "US" and number.country_code == 1  # the plan of all North America
    return region is None or shared or plans.region_code_for_number(number) == region


@lru_cache(maxsize=1 << 14)
def _usual_groups(digits: str, region: str, plans: ModuleType) -> list[str]:
    """Return the groups in which ``region`` writes the number; none if it is not valid there."""
    if not _is_valid(digits, region, plans):
        return []
    layout = plans.format_number(plans.parse(digits, region), plans.PhoneNumberFormat.NATIONAL)
    return _GROUP.findall(layout)
