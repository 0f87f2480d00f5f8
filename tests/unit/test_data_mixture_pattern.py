from fractions import Fraction

import numpy as np
import pytest

from distllm.data.order import LARGEST_BLOCK, Pattern, quotas_of


def worst_deviation(pattern):
    """The largest |count_s(n) - n w_s| over all prefixes and sources, in exact integers over B."""
    counts = np.zeros(len(pattern.quotas), dtype=np.int64)
    quota_S, worst = np.array(pattern.quotas), 0
    for n, source in enumerate(pattern.source_B.tolist(), 1):
        counts[source] += 1
        worst = max(worst, int(np.abs(counts * pattern.block - n * quota_S).max()))
    return Fraction(worst, pattern.block)


@pytest.mark.parametrize("sources", range(2, 9))
def test_every_prefix_is_within_the_bound_of_the_chairman_assignment(sources):
    random = np.random.default_rng(sources)
    bound = 1 - Fraction(1, 2 * sources - 2)
    cases = [tuple(random.integers(1, 60, sources).tolist()) for _ in range(60)]
    cases += [(1,) * sources, (200,) + (1,) * (sources - 1), tuple(2**s for s in range(sources))]
    assert max(worst_deviation(Pattern(quotas)) for quotas in cases) <= bound


def test_a_source_without_a_quota_does_not_loosen_the_bound():
    assert worst_deviation(Pattern((3, 0, 2, 0, 0))) <= Fraction(1, 2)
    assert 1 not in Pattern((3, 0, 2)).source_B


def test_a_pattern_is_pinned():
    # another pattern would change the past of every mixed run
    assert Pattern((3, 2, 1)).source_B.tolist() == [0, 1, 0, 2, 1, 0]
    assert Pattern((0, 1)).source_B.tolist() == [1]


@pytest.mark.parametrize("quotas", [(1,), (3, 2), (5, 0, 1, 7), (1,) * 8])
def test_draws_are_counted_and_found_again(quotas):
    pattern = Pattern(quotas)
    slots = np.tile(pattern.source_B, 3)
    assert np.bincount(pattern.source_B, minlength=len(quotas)).tolist() == list(quotas)
    for source, quota in enumerate(quotas):
        where = np.flatnonzero(slots == source)
        drawn = [pattern.drawn(source, n) for n in range(slots.size + 1)]
        assert drawn == [int((where < n).sum()) for n in range(slots.size + 1)]
        assert [pattern.slot_of(source, k) for k in range(3 * quota)] == where.tolist()


@pytest.mark.parametrize(
    ("weights", "quotas"),
    [
        (["0.7", "0.2", "0.1"], (7, 2, 1)),
        (["3", "1"], (3, 1)),
        (["0.5", "0", "0.5"], (1, 0, 1)),
        (["1e-3", "999e-3"], (1, 999)),
        (["42"], (1,)),
    ],
)
def test_simple_shares_are_exact(weights, quotas):
    assert quotas_of([Fraction(weight) for weight in weights]) == quotas


def test_other_shares_are_right_to_a_slot_and_none_is_lost():
    weights = [Fraction(10**9 + 7), Fraction(998_244_353), Fraction(3), Fraction(0)]
    quotas = quotas_of(weights)
    assert sum(quotas) == LARGEST_BLOCK
    assert (quotas[2], quotas[3]) == (1, 0)
    for weight, quota in zip(weights, quotas, strict=True):
        assert abs(Fraction(quota, LARGEST_BLOCK) - weight / sum(weights)) <= Fraction(1, LARGEST_BLOCK)


def test_many_small_sources_are_paid_for_by_the_largest():
    quotas = quotas_of([Fraction(10**12), *[Fraction(1, 7)] * 50])
    assert quotas == (LARGEST_BLOCK - 50, *[1] * 50)


@pytest.mark.parametrize("weights", [[0, 0], [-1, 2], [1] * (LARGEST_BLOCK // 2 + 1)])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match="no mixture"):
        quotas_of([Fraction(weight) for weight in weights])
