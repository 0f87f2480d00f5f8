"""Exact match and F1 of answers, with the conventions of SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018).

Answers are compared without case, punctuation, English articles and runs of spaces; of several
right ones the best counts. A question without an answer has the empty one.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

Version: TypeAlias = Literal["1.1", "2.0"]
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """Return an answer in the form that is compared."""
    bare = answer.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(given: str, right: str) -> float:
    """Return 1 if both say the same, else 0."""
    return float(normalized(given) == normalized(right))


def token_f1(given: str, right: str, version: Version = "2.0") -> float:
    """Return the harmonic mean of precision and recall of words.

    Of two empty answers it is 1 in version 2.0, which has questions without an answer, and 0 in 1.1.
    """
    ours, theirs = normalized(given).split(), normalized(right).split()
    if not ours or not theirs:
        return float(ours == theirs and version == "2.0")
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))


def version_of(right: Mapping[str, Sequence[str]]) -> Version:
    """Return the version whose rules score these questions: 2.0 where one of them has no answer."""
    return "1.1" if all(right.values()) else "2.0"


def score_answers(
    given: Mapping[str, str], right: Mapping[str, Sequence[str]], version: Version | None = None
) -> dict[str, float]:
    """Return exact match and F1 in percent over all questions, as the official script of the version does.

    Version 2.0 also scores questions with and without an answer separately. The versions differ in two
    more points: an answer of only articles and punctuation counts as none in 2.0, and a question without
    a given answer is wrong in 1.1 and not counted in 2.0.

    Args:
        given: an answer for each question.
        right: the right answers of each question; none if it has no answer.
        version: whose rules are used; None: see `version_of`.

    Raises:
        ValueError: there are no questions, or 2.0 counts none of them.
    """
    version = version or version_of(right)
    asked = [name for name in right if name in given or version == "1.1"]
    if not asked:
        raise ValueError("there are no questions to score")
    scores = {name: _score(given.get(name), right[name], version) for name in asked}
    found = _means("", list(scores.values()))
    with_answer = [scores[name] for name in asked if right[name]]
    without = [scores[name] for name in asked if not right[name]]
    if with_answer and without:
        found |= _means("answerable_", with_answer) | _means("unanswerable_", without)
    return found


def _score(given: str | None, right: Sequence[str], version: Version) -> tuple[float, float]:
    """Return exact match and F1 of one question with the best of its answers."""
    if given is None:
        return 0.0, 0.0
    known = right if version == "1.1" else [answer for answer in right if normalized(answer)] or [""]
    return (
        max((exact_match(given, answer) for answer in known), default=0.0),
        max((token_f1(given, answer, version) for answer in known), default=0.0),
    )


def _means(prefix: str, scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    exact, f1 = (100 * sum(column) / len(scores) for column in zip(*scores, strict=True))
    return {f"{prefix}exact_match": exact, f"{prefix}f1": f1}
