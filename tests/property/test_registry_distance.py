"""The edit distance against its textbook recursion, and suggestions against a search of everything."""

from functools import cache
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from distllm.registry import edit_distance, suggest

WORDS = st.text("abc", max_size=7)
NAMES = st.text("abcABC_.", max_size=9)


def reference(a, b):
    """Damerau's recursion on prefix lengths: delete, insert, substitute, or swap two neighbours."""

    @cache
    def distance(i, j):
        if not i or not j:
            return i + j
        ways = [
            distance(i - 1, j) + 1,
            distance(i, j - 1) + 1,
            distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]),
        ]
        if i > 1 and j > 1 and a[i - 2 : i] == b[j - 2 : j][::-1]:
            ways.append(distance(i - 2, j - 2) + 1)
        return min(ways)

    return distance(len(a), len(b))


@given(WORDS, WORDS)
def test_equals_the_recursion(a, b):
    assert edit_distance(a, b) == reference(a, b)


def test_equals_the_recursion_on_all_short_words():
    for letters, longest in (("abc", 3), ("ab", 5)):
        words = ["".join(word) for length in range(longest + 1) for word in product(letters, repeat=length)]
        for a, b in product(words, repeat=2):
            assert edit_distance(a, b) == reference(a, b), (a, b)


@given(WORDS, WORDS)
def test_is_symmetric_and_zero_only_for_equals(a, b):
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)


@given(WORDS, WORDS)
def test_lies_between_the_difference_of_lengths_and_the_longer_length(a, b):
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


@given(WORDS, WORDS, WORDS)
def test_common_ends_cost_nothing(a, b, shared):
    distance = edit_distance(a, b)
    assert edit_distance(shared + a, shared + b) == distance
    assert edit_distance(a + shared, b + shared) == distance


@given(WORDS, WORDS, st.characters(codec="ascii"))
def test_one_letter_more_changes_it_by_at_most_one(a, b, letter):
    assert abs(edit_distance(a + letter, b) - edit_distance(a, b)) <= 1


@given(NAMES, st.lists(NAMES, max_size=6))
def test_the_shortcuts_of_suggest_never_change_its_answer(name, candidates):
    limit = max(1, len(name) // 3)
    ranked = sorted((reference(name.lower(), option.lower()), option) for option in candidates)
    expected = ranked[0][1] if ranked and ranked[0][0] <= limit else None
    assert suggest(name, candidates) == expected
