import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distllm.data.order import SampleOrder, permute

keys = st.integers(0, 2**63 - 1)


@pytest.mark.parametrize("size", range(1, 258))
def test_permute_is_a_bijection(size):
    for key in (0, 1, 2**63 - 1):
        image_N = permute(np.arange(size), size, key)
        assert sorted(image_N.tolist()) == list(range(size))


@given(key=keys, size=st.integers(2**33, 10**12), start=st.integers(0, 2**32))
def test_permute_is_injective_and_in_range_at_large_sizes(key, size, start):
    index_N = np.concatenate([np.arange(start, start + 500), np.arange(size - 500, size)])
    image_N = permute(index_N, size, key)
    assert np.unique(image_N).size == np.unique(index_N).size
    assert image_N.min() >= 0
    assert image_N.max() < size


def test_permute_reaches_all_of_a_large_range():
    image_N = permute(np.arange(20_000), 10**12, 7)
    counts = np.histogram(image_N, bins=10, range=(0, 10**12))[0]
    assert counts.min() > 1800
    assert counts.max() < 2200


@given(key=keys, size=st.integers(1, 10**12), data=st.data())
def test_permute_maps_each_index_alone(key, size, data):
    index_N = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    together = permute(index_N, size, key).tolist()
    assert together == [int(permute(index_N[i : i + 1], size, key)[0]) for i in range(index_N.size)]


def test_permute_is_pinned():
    # a change of these numbers changes the data order of every run ever started
    assert permute(np.arange(8), 8, 3).tolist() == [4, 0, 2, 7, 3, 6, 5, 1]
    assert permute(np.array([0, 10**12 - 1]), 10**12, 3).tolist() == [418159280397, 239693939423]


def test_permutations_shuffle():
    image_N = permute(np.arange(1000), 1000, 5)
    assert (image_N == np.arange(1000)).sum() < 10
    assert (np.diff(image_N) == 1).sum() < 10


@pytest.mark.parametrize(("index", "size"), [([0], 0), ([-1], 5), ([5], 5)])
def test_permute_refuses_what_is_out_of_range(index, size):
    with pytest.raises(ValueError):
        permute(np.array(index), size, 0)


@given(size=st.integers(1, 60), seed=st.integers(0, 5), epochs=st.integers(1, 4))
def test_every_epoch_visits_every_sample_once(size, seed, epochs):
    _, epoch_N, sample_N = SampleOrder.single(size, seed).locate(np.arange(size * epochs))
    for epoch in range(epochs):
        assert sorted(sample_N[epoch_N == epoch].tolist()) == list(range(size))


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {
        tuple(SampleOrder.single(50, seed).locate(np.arange(e * 50, e * 50 + 50))[2])
        for e in range(3)
        for seed in range(3)
    }
    assert len(orders) == 9
