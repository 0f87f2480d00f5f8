"""Every engine computes the same thing: the plain-torch twin is the oracle."""

import math

import pytest
from engine_jobs import BF16, FP32, OFFLOADED, case_name, trained

# Engines sum the same numbers in another order; over 10 steps in fp32 losses stay this close.
RELATIVE_TOLERANCE = 2e-6

pytestmark = pytest.mark.dist
FP32_NAMES = [case_name(*case) for case in FP32 + OFFLOADED if "fp32" in case or case[0] == "local"]
BF16_NAMES = [case_name(*case) for case in BF16 + OFFLOADED if "bf16" in case]
ALL_NAMES = FP32_NAMES + BF16_NAMES


def cases(world_size):
    ranks, _ = trained(world_size)
    return ranks[0]["cases"]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", FP32_NAMES)
def test_the_loss_curve_is_that_of_the_plain_loop_on_one_rank(name, world_size):
    oracle, curve = cases(1)["local"]["curve"], cases(world_size)[name]["curve"]
    assert curve["losses"] == pytest.approx(oracle["losses"], rel=RELATIVE_TOLERANCE)
    assert oracle["losses"][-1] < 0.8 * oracle["losses"][0]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", FP32_NAMES)
def test_the_norm_is_that_of_the_summed_gradients_before_clipping(name, world_size):
    oracle, curve = cases(1)["local"]["curve"], cases(world_size)[name]["curve"]
    assert curve["norms"] == pytest.approx(oracle["norms"], rel=1e-5)
    assert min(oracle["norms"]) > 0.5


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", BF16_NAMES)
def test_bf16_follows_fp32_at_every_stage(name, world_size):
    oracle, curve = cases(1)["local"]["curve"], cases(world_size)[name]["curve"]
    assert curve["losses"] == pytest.approx(oracle["losses"], rel=1e-2)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", ALL_NAMES)
def test_one_bad_micro_batch_on_one_rank_skips_the_step_on_all(name, world_size):
    ranks, _ = trained(world_size)
    outcomes = [rank["cases"][name]["skip"] for rank in ranks]
    for outcome in outcomes:
        skipped, norm = outcome["poisoned"]
        assert skipped
        assert not math.isfinite(float(norm))
        assert outcome["untouched"]
        assert outcome["moved"]
        assert outcome["healthy"][0] is False
        assert math.isfinite(outcome["healthy"][1])
    assert all(outcome == outcomes[0] for outcome in outcomes)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", ALL_NAMES)
def test_a_refused_norm_changes_nothing_and_the_same_gradients_can_be_taken_next(name, world_size):
    ranks, _ = trained(world_size)
    outcomes = [rank["cases"][name]["refuse"] for rank in ranks]
    for outcome in outcomes:
        assert outcome["skipped"] == [True, False]
        assert outcome["untouched"]
        assert outcome["moved"]
        assert outcome["asked"] == outcome["norms"]
        assert outcome["norms"][0] == outcome["norms"][1] > 0
        partitioned = "zero3" in name
        assert outcome["replicas"] == (0 if partitioned else outcome["weights"])
    assert all(outcome == outcomes[0] for outcome in outcomes)


@pytest.mark.parametrize("name", FP32_NAMES)
def test_training_goes_on_after_a_skip_as_in_the_oracle(name):
    oracle, outcome = cases(1)["local"]["skip"], cases(2)[name]["skip"]
    assert outcome["loss"] == pytest.approx(oracle["loss"], rel=RELATIVE_TOLERANCE)


@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_agree_to_the_last_bit(world_size):
    ranks, _ = trained(world_size)
    for rank in ranks:
        assert rank["cases"].keys() == ranks[0]["cases"].keys()
        for name, results in rank["cases"].items():
            assert results["curve"] == ranks[0]["cases"][name]["curve"]
            assert results["save"]["digest"] == ranks[0]["cases"][name]["save"]["digest"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_nothing_is_printed(world_size):
    ranks, _ = trained(world_size)
    assert [rank["output"] for rank in ranks] == [""] * world_size


@pytest.mark.parametrize("name", [case_name(*case) for case in OFFLOADED if "nvme" in case])
def test_weights_and_moments_of_an_update_live_in_files(name):
    ranks, _ = trained(2)
    assert all(rank["cases"][name]["curve"]["files"] >= 3 for rank in ranks)
