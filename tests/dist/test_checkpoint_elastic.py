"""The elastic matrix: what any ranks, stage and offload saved, any others load, and training goes on.

Eight chains run over 2, then 4, 3 and 1 ranks. At each number of ranks every chain goes on from the
checkpoint of the one before with another engine, stage or offload, so that each of these both writes
and reads at each number of ranks.
"""

import tempfile
from pathlib import Path

import pytest
from engine_jobs import FP32, OFFLOADED, case_name, digest, make_engine, train_step
from ranks import run_ranks

pytestmark = [pytest.mark.dist, pytest.mark.slow]

WORLDS = (2, 4, 3, 1)
CASES = FP32 + OFFLOADED[:3]
STEPS, SAMPLES = 2, 24  # steps at each number of ranks; samples of a step, a multiple of two micro-batches each
TURN = 3  # coprime to the number of cases: no chain meets a case twice

# Sums in another order, over all eight steps.
RELATIVE_TOLERANCE = 2e-6


def case_of(chain, place):
    return CASES[(chain + TURN * place) % len(CASES)]


def chain_job(topology, directory, place):
    """At one number of ranks: load each chain's checkpoint, take steps, save."""
    from distllm.checkpoint.load import find_checkpoint, load_checkpoint
    from distllm.checkpoint.retention import Retention
    from distllm.checkpoint.save import Saver

    results = []
    for chain in range(len(CASES)):
        engine = make_engine(topology, *case_of(chain, place), samples=SAMPLES)
        home, loaded, first = Path(directory) / str(chain), None, STEPS * place
        if place:
            found = find_checkpoint(home, topology)
            assert load_checkpoint(found, engine) == {"step": first}
            loaded = digest(engine)
        steps = range(first, first + STEPS)
        losses = [train_step(engine, topology, step, count=SAMPLES)[0] for step in steps]
        saver = Saver(home, topology, Retention(1), background=True)
        saver.save(first + STEPS, engine, {"step": first + STEPS}, {})
        saver.settle()
        results.append({"loaded": loaded, "saved": digest(engine), "losses": losses})
    return results


def oracle_job(topology):
    """The same steps with the plain engine, never stopped."""
    engine = make_engine(topology, *FP32[0], samples=SAMPLES)
    return [
        train_step(engine, topology, step, count=SAMPLES)[0] for step in range(STEPS * len(WORLDS))
    ]


@pytest.fixture(scope="module")
def chains():
    """Per number of ranks what every chain did, and the oracle's losses."""
    with tempfile.TemporaryDirectory(prefix="elastic-") as directory:
        results = [
            run_ranks(chain_job, world, directory, place, timeout=280)[0]
            for place, world in enumerate(WORLDS)
        ]
    return results, run_ranks(oracle_job, 1)[0]


def name(chain, place):
    return f"chain {chain}, {case_name(*case_of(chain, place))} on {WORLDS[place]} ranks"


def test_every_case_writes_and_reads_at_every_number_of_ranks():
    for place in range(len(WORLDS)):
        assert {case_of(chain, place) for chain in range(len(CASES))} == set(CASES)
    for chain in range(len(CASES)):
        assert len({case_of(chain, place) for place in range(len(WORLDS))}) == len(WORLDS)


@pytest.mark.timeout(600)
def test_every_bit_of_weights_and_moments_is_loaded(chains):
    results, _ = chains
    for place in range(1, len(WORLDS)):
        for chain, outcome in enumerate(results[place]):
            assert outcome["loaded"] == results[place - 1][chain]["saved"], name(chain, place)


@pytest.mark.timeout(600)
def test_the_losses_are_those_of_a_run_that_never_changed(chains):
    results, oracle = chains
    for place in range(len(WORLDS)):
        expected = oracle[STEPS * place : STEPS * (place + 1)]
        for chain, outcome in enumerate(results[place]):
            assert outcome["losses"] == pytest.approx(expected, rel=RELATIVE_TOLERANCE), name(chain, place)
