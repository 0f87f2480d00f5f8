"""Finding all kinds in a text and replacing them."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterator

from distllm.config.schema_privacy import PrivacyConfig, PrivacyKind
from distllm.data.privacy.accounts import find_credit_cards, find_ibans
from distllm.data.privacy.national import find_national_ids
from distllm.data.privacy.network import find_emails, find_ips
from distllm.data.privacy.page import Finding, Page, Span
from distllm.data.privacy.phones import check_regions, find_phones
from distllm.data.privacy.secrets import find_api_keys, find_private_keys

# The surest first: what one has claimed no later one takes. A kind that is not replaced still
# claims its place, so that a card is never replaced as a phone.
_DETECTORS: tuple[tuple[PrivacyKind, Callable[[Page], Iterator[Span]]], ...] = (
    ("private_key", find_private_keys),
    ("api_key", find_api_keys),
    ("email", find_emails),
    ("ip", find_ips),
    ("iban", find_ibans),
    ("credit_card", find_credit_cards),
    ("national_id", find_national_ids),
    ("phone", find_phones),
)


def placeholder(kind: PrivacyKind) -> str:
    """Return the replacement of a finding. No detector finds anything in it."""
    return f"<{kind.upper()}>"


class Scrubber:
    """Replaces personal data and secrets; pure, and picklable for worker processes.

    Scrubbing is repeated until nothing is found, because a replacement can make the text next to it
    detectable. So scrubbing a text twice gives the same result as once.

    Raises:
        ConfigError: a region of ``phone_regions`` has no numbering plan.
        MissingDependency: phones are asked for and `phonenumbers` is not installed.
    """

    def __init__(self, config: PrivacyConfig) -> None:
        self._config = config
        self._asked = frozenset(config.scrub)
        last = max((n for n, (kind, _) in enumerate(_DETECTORS) if kind in self._asked), default=-1)
        self._detectors = _DETECTORS[: last + 1]
        if "phone" in self._asked:
            check_regions(config.phone_regions)

    def scrub(self, text: str) -> tuple[str, Counter[str]]:
        """Return ``text`` with placeholders, and how many of each kind were put in."""
        counts: Counter[str] = Counter()
        while found := self._look(text):
            counts.update(finding.kind for finding in found)
            text = _replaced(text, found)
        return text, counts

    def clean(self, text: str) -> str:
        """Return ``text`` with placeholders."""
        return self.scrub(text)[0]

    def find(self, text: str) -> list[Finding]:
        """Return what ``scrub`` would replace, in order, as places of the given ``text``."""
        all_found: list[Finding] = []
        current = text
        while found := self._look(current):
            placed = [
                Finding(each.kind, _origin(each.start, all_found), _origin(each.stop, all_found))
                for each in found
            ]
            all_found = sorted([*all_found, *placed], key=lambda each: each.start)
            current = _replaced(text, all_found)
        return all_found

    def _look(self, text: str) -> list[Finding]:
        """Return the findings of one pass over ``text``, in order, apart from each other."""
        page = Page(text, self._config)
        claimed: list[Span] = []
        found: list[Finding] = []
        for kind, detector in self._detectors:
            for start, stop in detector(page):
                at = bisect_right(claimed, (start, stop))
                if (at and claimed[at - 1][1] > start) or (at < len(claimed) and claimed[at][0] < stop):
                    continue
                insort(claimed, (start, stop))
                if kind in self._asked:
                    found.append(Finding(kind, start, stop))
        return sorted(found, key=lambda each: each.start)


def _replaced(text: str, found: list[Finding]) -> str:
    parts, position = [], 0
    for each in found:
        parts += [text[position : each.start], placeholder(each.kind)]
        position = each.stop
    return "".join([*parts, text[position:]])


def _origin(position: int, replaced: list[Finding]) -> int:
    """Return where ``position``, a place between placeholders, was before ``replaced`` were."""
    grown = 0
    for each in replaced:
        if each.start + grown >= position:
            break
        grown += len(placeholder(each.kind)) - (each.stop - each.start)
    return position - grown
