from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distllm.data.order import Phase, SampleOrder, SourceSamples, permute, quotas_of, unpermute
from distllm.seeds import derive_seed

seeds = st.integers(0, 2**31)


@st.composite
def orders(draw, max_samples=257):
    """Sources of 1 to 7 shards, phases, a seed and a window."""
    names = "abcd"[: draw(st.integers(1, 4))]
    sources = []
    for name in names:
        shards = draw(st.lists(st.integers(0, max_samples // 7), min_size=1, max_size=7))
        shards[draw(st.integers(0, len(shards) - 1))] += 1
        sources.append(SourceSamples(name, tuple(shards)))
    # small ones are dealt from a table, large ones by a tree
    numbers = st.one_of(st.integers(0, 5), st.integers(0, 10**8))
    quota = st.lists(numbers, min_size=len(names), max_size=len(names)).filter(any)
    starts = sorted(draw(st.sets(st.integers(1, 300), max_size=3)))
    phases = [Phase(start, tuple(draw(quota))) for start in (0, *starts)]
    window = draw(st.one_of(st.none(), st.integers(1, 8)))
    return SampleOrder(sources, phases, seed=draw(seeds), window_shards=window)


def everything(order, count):
    return [part_N.tolist() for part_N in order.locate(np.arange(count, dtype=np.int64))]


@given(order=orders())
@settings(max_examples=80, deadline=None)
def test_every_epoch_of_every_source_holds_each_sample_once(order):
    count = 700
    source_N, epoch_N, sample_N = everything(order, count)
    drawn = order.drawn(count)
    assert [source_N.count(s) for s in range(len(order.sources))] == list(drawn)
    seen = Counter(zip(source_N, epoch_N, sample_N, strict=True))
    assert max(seen.values()) == 1
    for source, (samples, times) in enumerate(zip(order.sources, drawn, strict=True)):
        for epoch in range(times // samples.total):
            held = {sample for s, e, sample in seen if (s, e) == (source, epoch)}
            assert held == set(range(samples.total))


@given(sizes=st.lists(st.integers(1, 40_000), min_size=2, max_size=4), seed=seeds, epochs=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_sources_drawn_by_their_sizes_end_their_epochs_together(sizes, seed, epochs):
    sources = [SourceSamples(name, (size,)) for name, size in zip("abcd", sizes, strict=False)]
    quotas = quotas_of([Fraction(size) for size in sizes])
    order, total = SampleOrder(sources, [Phase(0, quotas)], seed=seed), sum(sizes)
    assert order.drawn(epochs * total) == tuple(epochs * size for size in sizes)
    source_N, epoch_N, sample_N = order.locate(np.arange((epochs - 1) * total, epochs * total))
    assert (epoch_N == epochs - 1).all()
    firsts = np.cumsum(sizes) - sizes
    np.testing.assert_array_equal(np.sort(firsts[source_N] + sample_N), np.arange(total))


@given(order=orders(max_samples=60), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_inverse_names_every_position_of_a_sample(order, data):
    below = data.draw(st.integers(0, 500))
    source = data.draw(st.integers(0, len(order.sources) - 1))
    sample = data.draw(st.integers(0, order.sources[source].total - 1))
    source_N, _, sample_N = everything(order, below)
    expected = [n for n in range(below) if (source_N[n], sample_N[n]) == (source, sample)]
    assert order.positions_of(source, sample, below) == expected


@given(order=orders(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_positions_are_independent_of_each_other(order, data):
    position = data.draw(st.lists(st.integers(0, 10**9), min_size=1, max_size=12))
    together = [part_N.tolist() for part_N in order.locate(np.array(position))]
    alone = [[int(part_N[0]) for part_N in order.locate(np.array([p]))] for p in position]
    assert together == [list(column) for column in zip(*alone, strict=True)]


@given(order=orders(), start=st.integers(301, 600), quota=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_a_phase_in_the_future_leaves_the_past(order, start, quota):
    later = SampleOrder(
        order.sources,
        [*order.phases, Phase(start, (quota,) * len(order.sources))],
        seed=order._seed,
        window_shards=order._window_shards,
    )
    assert everything(later, start) == everything(order, start)
    assert later.drawn(start) == order.drawn(start)
    assert later.prefix_digest(start) == order.prefix_digest(start) == order.digest
    assert later.prefix_digest(start + 1) != order.prefix_digest(start + 1)


@given(size=st.integers(1, 10**12), key=st.integers(0, 2**63 - 1), data=st.data())
def test_unpermute_is_the_inverse(size, key, data):
    index_N = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    np.testing.assert_array_equal(unpermute(permute(index_N, size, key), size, key), index_N)


@pytest.mark.parametrize("samples", [1, 7, 1000])
def test_one_source_is_permuted_by_a_key_for_each_epoch(samples):
    order, position_N = SampleOrder.single(samples, 5), np.arange(2500)
    source_N, epoch_N, sample_N = order.locate(position_N)
    assert not source_N.any()
    np.testing.assert_array_equal(epoch_N, position_N // samples)
    for epoch in range(3):
        here_N = epoch_N == epoch
        key = derive_seed(5, "order", epoch)
        np.testing.assert_array_equal(sample_N[here_N], permute(position_N[here_N] % samples, samples, key))


def test_a_trillion_samples_cost_no_memory():
    total = 10**12
    sources = [SourceSamples("a", (total,)), SourceSamples("b", (total // 7,) * 7)]
    order = SampleOrder(sources, [Phase(0, (2, 1)), Phase(10**11, (1, 3))], seed=1)
    position_N = np.array([0, 1, 10**11 - 1, 10**11, 3 * 10**12, 3 * 10**12 + 1])
    source_N, epoch_N, sample_N = order.locate(position_N)
    assert (sample_N < total).all()
    assert epoch_N.max() >= 2
    for position, source, sample in zip(position_N, source_N, sample_N, strict=True):
        assert int(position) in order.positions_of(int(source), int(sample), int(position) + 1)
    places = sum(pattern.source_B.size for pattern in order._patterns)
    assert places < 100


def test_a_window_holds_its_shards_together():
    order = SampleOrder([SourceSamples("a", (10,) * 12)], [Phase(0, (1,))], seed=3, window_shards=3)
    _, _, sample_N = order.locate(np.arange(240))
    windows = [
        [{int(k) // 10 for k in sample_N[e * 120 + w * 30 :][:30]} for w in range(4)] for e in range(2)
    ]
    assert all(len(shards) == 3 for epoch in windows for shards in epoch)
    assert windows[0] != windows[1]
    assert sample_N[:30].tolist() != sorted(sample_N[:30].tolist())


def test_digests_tell_every_argument_apart():
    base = {"seed": 1, "window_shards": None}
    shards, phases = (5, 5), [Phase(0, (1, 2))]

    def digest(shards=shards, phases=phases, names="ab", **keys):
        sources = [SourceSamples(names[0], shards), SourceSamples(names[1], (9,))]
        return SampleOrder(sources, phases, **{**base, **keys}).digest

    others = [
        digest(seed=2),
        digest(names="ac"),
        digest(shards=(5, 6)),
        digest(phases=[Phase(0, (2, 1))]),
        digest(phases=[*phases, Phase(4, (1, 1))]),
        digest(window_shards=1),
        digest(window_shards=2),
        digest(window_shards=2, shards=(4, 6)),
    ]
    assert len({digest(), *others}) == 1 + len(others)
    assert digest() == digest(shards=(10,))


@pytest.mark.parametrize("starts", [[], [1], [0, 0], [0, 5, 3]])
def test_phases_out_of_order_are_refused(starts):
    with pytest.raises(ValueError, match="phases begin"):
        SampleOrder([SourceSamples("a", (3,))], [Phase(start, (1,)) for start in starts], seed=0)


def test_a_source_without_samples_cannot_be_drawn():
    sources = [SourceSamples("a", (3,)), SourceSamples("b", (0,))]
    with pytest.raises(ValueError, match="no samples to draw from b"):
        SampleOrder(sources, [Phase(0, (1, 1))], seed=0)
    order = SampleOrder(sources, [Phase(0, (1, 0))], seed=0)
    assert not order.locate(np.arange(9))[0].any()
    assert order.positions_of(0, 1, 0) == []
    with pytest.raises(ValueError, match="b is not drawn 1 times"):
        order.position_of_draw(1, 0)
