from fractions import Fraction

import numpy as np
import pytest

from distllm.data.order import (
    LARGEST_BLOCK,
    LARGEST_TOTAL,
    BlockPattern,
    TreePattern,
    pattern_of,
    quotas_of,
)


def worst_deviation(pattern, slots=None):
    """The largest |count_s(n) - n w_s| over sources and prefixes of these slots, or of one period."""
    total = sum(pattern.quotas)
    slot_N = np.arange(total if slots is None else slots)
    source_N, ordinal_N = pattern.draw(slot_N)
    worst = 0
    for source, quota in enumerate(pattern.quotas):
        drawn_N = np.cumsum(source_N == source)
        np.testing.assert_array_equal(ordinal_N[source_N == source], np.arange(drawn_N[-1]))
        worst = max(worst, int(np.abs(drawn_N * total - (slot_N + 1) * quota).max()))
    return Fraction(worst, total)


@pytest.mark.parametrize("sources", range(2, 9))
def test_every_prefix_is_within_the_bound_of_the_chairman_assignment(sources):
    random = np.random.default_rng(sources)
    bound = 1 - Fraction(1, 2 * sources - 2)
    cases = [tuple(random.integers(1, 60, sources).tolist()) for _ in range(60)]
    cases += [(1,) * sources, (200,) + (1,) * (sources - 1), tuple(2**s for s in range(sources))]
    assert max(worst_deviation(BlockPattern(quotas)) for quotas in cases) <= bound


def test_a_source_without_a_quota_does_not_loosen_the_bound():
    assert worst_deviation(BlockPattern((3, 0, 2, 0, 0))) <= Fraction(1, 2)
    assert 1 not in BlockPattern((3, 0, 2)).source_B


def test_a_pattern_is_pinned():
    # another pattern would change the past of every mixed run
    assert BlockPattern((3, 2, 1)).source_B.tolist() == [0, 1, 0, 2, 1, 0]
    assert BlockPattern((0, 1)).source_B.tolist() == [1]


@pytest.mark.parametrize("kind", [BlockPattern, TreePattern])
@pytest.mark.parametrize("quotas", [(1,), (3, 2), (5, 0, 1, 7), (1,) * 8, (40, 9, 0, 9, 1)])
def test_draws_are_counted_and_found_again(kind, quotas):
    pattern = kind(quotas)
    slots, _ = pattern.draw(np.arange(3 * sum(quotas)))
    assert np.bincount(slots[: sum(quotas)], minlength=len(quotas)).tolist() == list(quotas)
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
        (["123457", "33331"], (123457, 33331)),
    ],
)
def test_simple_shares_are_exact(weights, quotas):
    assert quotas_of([Fraction(weight) for weight in weights]) == quotas


def test_sources_of_any_size_are_drawn_as_often_as_they_have_samples():
    # of a table of 2**14 slots the least source would get one, and be seen 17 times
    sizes = (250_000_000, 1_000_000, 20_000, 901)
    pattern = pattern_of(quotas_of([Fraction(size) for size in sizes]))
    assert [pattern.drawn(source, sum(sizes)) for source in range(4)] == list(sizes)


def test_shares_beyond_counting_are_right_to_a_slot_and_none_is_lost():
    weights = [Fraction(10**12 + 7), Fraction(998_244_353_123), Fraction(3), Fraction(0)]
    quotas = quotas_of(weights)
    assert sum(quotas) == LARGEST_TOTAL
    assert (quotas[2], quotas[3]) == (1, 0)
    for weight, quota in zip(weights, quotas, strict=True):
        assert abs(Fraction(quota, LARGEST_TOTAL) - weight / sum(weights)) <= Fraction(1, LARGEST_TOTAL)


def test_many_small_sources_are_paid_for_by_the_largest():
    quotas = quotas_of([Fraction(10**15), *[Fraction(1, 7)] * 50])
    assert quotas == (LARGEST_TOTAL - 50, *[1] * 50)


@pytest.mark.parametrize("weights", [[0, 0], [-1, 2]])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match="no mixture"):
        quotas_of([Fraction(weight) for weight in weights])


@pytest.mark.parametrize("sources", range(2, 9))
def test_every_prefix_of_a_tree_is_within_its_bound(sources):
    random = np.random.default_rng(sources)
    cases = [tuple(random.integers(1, 10**6, sources).tolist()) for _ in range(12)]
    cases += [tuple((10 ** random.uniform(0, 7, sources)).astype(int).tolist()) for _ in range(12)]
    cases += [tuple((9000 + random.integers(0, 9, sources)).tolist()), (10**6,) + (1,) * (sources - 1)]
    bound = {2: Fraction(1, 2), 3: 1}.get(sources, Fraction(3, 2))
    assert max(worst_deviation(TreePattern(quotas), 20_000) for quotas in cases) <= bound


@pytest.mark.parametrize(("sources", "bound"), [(4, Fraction(3, 4)), (8, Fraction(7, 8))])
def test_equal_sources_are_the_leaves_of_an_even_tree(sources, bound):
    assert worst_deviation(TreePattern((10**6,) * sources), 1000) <= bound


def test_a_tree_is_pinned():
    # another tree would change the past of every run with sources of many sizes
    assert TreePattern((3, 2, 1)).draw(np.arange(6))[0].tolist() == [0, 1, 0, 2, 0, 1]
    assert TreePattern((4, 3, 3, 2)).draw(np.arange(12))[0].tolist() == [0, 1, 3, 2, 0, 1, 0, 2, 3, 1, 0, 2]
    source_N, ordinal_N = TreePattern((10**6, 3, 10**9)).draw(10**12 + np.arange(3))
    assert (source_N.tolist(), ordinal_N.tolist()) == ([2, 2, 2], [999000996007, 999000996008, 999000996009])


def test_a_tree_counts_without_overflow_up_to_the_largest_total_and_position():
    quotas = (LARGEST_TOTAL // 2, LARGEST_TOTAL // 3, LARGEST_TOTAL - LARGEST_TOTAL // 2 - LARGEST_TOTAL // 3)
    pattern = TreePattern(quotas)
    slot_N = np.array([2**61, 2**61 + 1, 2**61 + 12345, LARGEST_TOTAL, 10**12])
    for slot, source, ordinal in zip(
        slot_N.tolist(), *(p.tolist() for p in pattern.draw(slot_N)), strict=True
    ):
        assert ordinal == pattern.drawn(source, slot) == pattern.drawn(source, slot + 1) - 1
        assert pattern.slot_of(source, ordinal) == slot
        assert sum(pattern.drawn(s, slot) for s in range(3)) == slot


@pytest.mark.parametrize("quotas", [(0, 0), (LARGEST_TOTAL, 1), (3, -1)])
def test_a_tree_refuses_quotas_it_cannot_count(quotas):
    with pytest.raises(ValueError, match="together"):
        TreePattern(quotas)


def test_small_blocks_are_tables_and_large_ones_trees():
    assert isinstance(pattern_of((LARGEST_BLOCK - 1, 1)), BlockPattern)
    assert isinstance(pattern_of((LARGEST_BLOCK, 1)), TreePattern)
