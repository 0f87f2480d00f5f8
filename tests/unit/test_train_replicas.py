"""One flipped bit is found, and the rank that holds it is named."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distllm.dist.fingerprint import fingerprint
from distllm.dist.topology import Topology
from distllm.train.replicas import ReplicaCheck, flipped, odd_ones_out

ALONE = Topology(rank=0, local_rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8]


def weights():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in ((7, 5), (3,), (2, 2, 2))]


def flip(tensor, element, bit):
    """Flip one bit of one element in place."""
    raw = tensor.numpy().reshape(-1).view(np.uint32)
    raw[element] ^= np.uint32(1 << bit)


@given(st.integers(0, 2), st.integers(0, 2), st.integers(0, 31))
def test_any_single_bit_changes_the_fingerprint(index, element, bit):
    tensors = weights()
    before = fingerprint(tensors)
    flip(tensors[index], element, bit)
    assert fingerprint(tensors) != before
    flip(tensors[index], element, bit)
    assert fingerprint(tensors) == before


def test_equal_tensors_have_equal_fingerprints_and_their_order_counts():
    assert fingerprint(weights()) == fingerprint(weights())
    assert fingerprint(weights()) != fingerprint(reversed(weights()))
    assert fingerprint([]) == fingerprint([])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_has_a_fingerprint(dtype):
    ones, twos = torch.ones(9, dtype=dtype), torch.ones(9, dtype=dtype)
    twos[4] = 2
    assert fingerprint([ones]) != fingerprint([twos])


def test_strided_and_trained_tensors_are_read_as_they_are():
    table = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    assert fingerprint([table]) == fingerprint([table.detach().clone()])
    assert fingerprint([table.detach().T]) == fingerprint([table.detach().T.contiguous()])


def test_replicas_that_agree_are_not_corrupt():
    assert odd_ones_out([5, 5, 5, 5]) is None
    assert odd_ones_out([5]) is None


@pytest.mark.parametrize(
    ("fingerprints", "ranks"),
    [([5, 5, 6], (2,)), ([6, 5, 5, 5], (0,)), ([5, 7, 5, 6, 5], (1, 3)), ([5, 6], ()), ([5, 6, 5, 6], ())],
)
def test_the_odd_ranks_out_are_named_where_there_is_a_majority(fingerprints, ranks):
    corruption = odd_ones_out(fingerprints)
    assert corruption is not None
    assert corruption.ranks == ranks


def test_a_rank_whose_weights_changed_by_themselves_names_itself():
    assert flipped([0.0, 0.0]) is None
    corruption = flipped([0.0, 1.0, 1.0])
    assert corruption is not None
    assert corruption.ranks == (1, 2)


class OneTensor:
    """As much of an engine as a comparison needs."""

    def __init__(self):
        self.weight = torch.zeros(4)

    def replicas(self):
        yield self.weight


def test_a_change_between_two_updates_is_noticed_once():
    engine = OneTensor()
    check = ReplicaCheck(engine, ALONE)
    assert not check.changed_since(), "nothing was compared yet"
    assert check.after_update() is None
    flip(engine.weight, 2, 0)
    assert check.changed_since()
    assert not check.changed_since(), "the update that follows may change the weights"


def test_what_did_not_change_or_was_loaded_anew_is_no_corruption():
    engine = OneTensor()
    check = ReplicaCheck(engine, ALONE)
    check.after_update()
    assert not check.changed_since()
    check.after_update()
    engine.weight = torch.ones(4)
    check.forget()
    assert not check.changed_since()
