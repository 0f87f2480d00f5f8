"""Checks of a cleaning profile: filters, languages, and bounds that no document could pass."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, entry_points

from distllm.config.problems import Problems
from distllm.config.schema_clean import CleanConfig
from distllm.registry import did_you_mean

FILTER_GROUP = "distllm.filters"
_LANGUAGE = re.compile(r"[a-z]{2,3}")


def offered_filters() -> dict[str, EntryPoint]:
    """Return the filters that installed packages offer, by name; none is imported."""
    return {point.name: point for point in entry_points(group=FILTER_GROUP)}


def filter_remedy(name: str) -> str:
    """Return what to do about a filter ``name`` that no installed package offers."""
    if offered := offered_filters():
        return did_you_mean(name, offered)
    return f"install a package that offers it as an entry point of the group {FILTER_GROUP}"


def check_clean(clean: CleanConfig, problems: Problems) -> None:
    """Check the keys below ``clean``; adds every problem and raises none."""
    offered = offered_filters() if clean.filters else {}
    for name in clean.filters:
        problems.check(
            name in offered, f"unknown filter {name!r}", keys=["clean.filters"], remedy=filter_remedy(name)
        )
    for language in clean.languages:
        problems.check(
            _LANGUAGE.fullmatch(language) is not None,
            f"{language!r} is not a language code",
            keys=["clean.languages"],
            remedy="use ISO 639-1 codes: clean.languages=[en,de]",
        )
    _check_order(clean, "words", problems)
    _check_order(clean, "mean_word_length", problems)
    for key in ("max_top_ngram", "max_duplicate_ngram"):
        problems.check(
            all(0 <= share <= 1 for share in getattr(clean.repetition, key)),
            f"clean.repetition.{key} has a value outside of 0 to 1",
            keys=[f"clean.repetition.{key}"],
            remedy="use fractions from 0 to 1, as in conf/clean/gopher.yaml",
        )


def _check_order(clean: CleanConfig, what: str, problems: Problems) -> None:
    least, most = getattr(clean.gopher, f"min_{what}"), getattr(clean.gopher, f"max_{what}")
    problems.check(
        least is None or most is None or least <= most,
        f"clean.gopher.min_{what}={least} is more than clean.gopher.max_{what}={most}: no document passes",
        keys=[f"clean.gopher.min_{what}", f"clean.gopher.max_{what}"],
        remedy="swap the two, or set one to null",
    )
