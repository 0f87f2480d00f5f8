"""Exact match and F1 of answers, with the conventions of SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018).

Answers are compared without case, punctuation, English articles and runs of spaces; of several
right ones the best counts. A question without an answer has the empty one.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """Return what of an answer counts."""
    bare = answer.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(given: str, right: str) -> float:
    """Return 1 if both say the same, else 0."""
    return float(normalized(given) == normalized(right))


def token_f1(given: str, right: str) -> float:
    """Return the harmonic mean of precision and recall of words; of two empty answers it is 1."""
    ours, theirs = normalized(given).split(), normalized(right).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))


def score_answers(given: Mapping[str, str], right: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return exact match and F1 in percent over all questions.

    Args:
        given: an answer for each question; one that lacks it counts as wrong, as if it were not asked
            for but not answered.
        right: the right answers of each question; none if it has no answer.

    Raises:
        ValueError: there are no questions.
    """
    if not right:
        raise ValueError("there are no questions to score")
    sums = {"exact_match": 0.0, "f1": 0.0}
    for name, answers in right.items():
        if name not in given:
            continue
        # answers that are nothing but articles and punctuation are none
        known = [answer for answer in answers if normalized(answer)] or [""]
        sums["exact_match"] += max(exact_match(given[name], answer) for answer in known)
        sums["f1"] += max(token_f1(given[name], answer) for answer in known)
    return {measure: 100 * total / len(right) for measure, total in sums.items()}
