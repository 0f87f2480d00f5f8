"""A run goes on from its checkpoint as if nothing had happened, on the same ranks and on others."""

import functools
import math

import pytest
from engine_jobs import BF16, FP32, HALF, OFFLOADED, case_name, resume_job, trained
from ranks import run_ranks

pytestmark = pytest.mark.dist
RELATIVE_TOLERANCE = 2e-6

SAME = [(case, case) for case in FP32 + BF16 + OFFLOADED]
LOCAL, ZERO0, ZERO1, ZERO2, ZERO3 = FP32
OTHER_STAGE = [(ZERO2, ZERO3), (ZERO3, ZERO0), (ZERO0, LOCAL), (LOCAL, ZERO1), (ZERO3, ZERO2)]


@functools.cache
def resumed(world_size):
    """Results per (world size that saved, case that saved, case that resumes), on rank 0."""
    plans = [(world_size, saver, reader) for saver, reader in SAME + OTHER_STAGE]
    plans += [(3 - world_size, saver, reader) for saver, reader in [*((c, c) for c in FP32), (ZERO3, ZERO1)]]
    arguments = [(trained(world)[1] / case_name(*saver), reader) for world, saver, reader in plans]
    results = run_ranks(resume_job, world_size, arguments, timeout=240)[0]
    return dict(zip(plans, results, strict=True))


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", FP32 + BF16 + OFFLOADED, ids=lambda case: case_name(*case))
def test_resuming_on_the_same_ranks_is_equal_to_the_last_bit(case, world_size):
    ranks, _ = trained(world_size)
    straight = ranks[0]["cases"][case_name(*case)]["save"]
    outcome = resumed(world_size)[world_size, case, case]
    assert outcome["loaded"] == straight["at_save"]
    assert outcome["losses"] == straight["losses"]
    assert outcome["digest"] == straight["digest"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_numbers_of_the_loop_come_back(world_size):
    state = resumed(world_size)[world_size, ZERO2, ZERO2]["state"]
    assert (state["step"], state["pi"]) == (HALF + 1, 3.141592653589793)
    assert math.isnan(state["unknown"])


@pytest.mark.parametrize("world_size", [1, 2])
def test_other_ranks_or_another_stage_load_every_bit_and_go_on_alike(world_size):
    changed = {
        plan: outcome
        for plan, outcome in resumed(world_size).items()
        if plan[0] != world_size or plan[1] != plan[2]
    }
    assert len(changed) == len(OTHER_STAGE) + len(FP32) + 1
    for (saved_by, saver, reader), outcome in changed.items():
        straight = trained(saved_by)[0][0]["cases"][case_name(*saver)]["save"]
        assert outcome["loaded"] == straight["at_save"], (saved_by, saver, reader)
        assert outcome["losses"] == pytest.approx(straight["losses"], rel=RELATIVE_TOLERANCE)
