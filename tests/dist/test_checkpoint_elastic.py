"""The elastic matrix: what any ranks, stage and offload saved, any others load, and training goes on.

Eight chains run over 2, then 4, 3 and 1 ranks. At each number of ranks every chain goes on from the
checkpoint of the one before with another engine, stage or offload, so that each of these both writes
and reads at each number of ranks.
"""

import errno
import tempfile
from pathlib import Path

import pytest
import torch
from engine_jobs import FP32, OFFLOADED, case_name, digest, make_engine, train_step
from ranks import run_ranks
from torch.utils._python_dispatch import TorchDispatchMode

from distllm.checkpoint.commit import Files
from distllm.checkpoint.format import listed_files, step_path
from distllm.checkpoint.load import find_checkpoint, load_checkpoint
from distllm.checkpoint.retention import Retention
from distllm.checkpoint.save import Saver
from distllm.dist.collectives import barrier
from distllm.errors import StorageError

pytestmark = [pytest.mark.dist, pytest.mark.slow]

WORLDS = (2, 4, 3, 1)
CASES = FP32 + OFFLOADED[:3]
STEPS, SAMPLES = 2, 24  # steps at each number of ranks; samples of a step, a multiple of two micro-batches each
FAILING = 3  # the chain whose saves fail once at each number of ranks
TURN = 3  # coprime to the number of cases: no chain meets a case twice

# Sums in another order, over all eight steps.
RELATIVE_TOLERANCE = 2e-6


def case_of(chain, place):
    return CASES[(chain + TURN * place) % len(CASES)]


def chain_job(topology, directory, place):
    """At one number of ranks: load each chain's checkpoint, take steps, save."""
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
        failed = full_disk(saver, engine, first + STEPS, topology, home) if chain == FAILING else None
        saver.save(first + STEPS, engine, {"step": first + STEPS}, {})
        saver.settle()
        last, made = topology.world_size - 1, Allocated()
        with made:
            given = [name for name, _ in engine.state(lambda _shape, last=last: last)]
        files = listed_files(step_path(home, first + STEPS))
        results.append(
            {
                "loaded": loaded,
                "saved": digest(engine),
                "losses": losses,
                "failed": failed,
                "given": len(given),
                "allocated": made.numel,
                "files": {name: record.bytes for name, record in files.items()},
            }
        )
    return results


class Allocated(TorchDispatchMode):
    """Counts the elements of every tensor that is made, views not among them."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not func.is_view and not func._schema.is_mutable:
            self.numel += made.numel()
        return made


def full_disk(saver, engine, step, topology, home):
    """Save where the last rank finds no room, once beside the training and once with it waiting.

    Return what was raised, and which steps and other entries the directory then holds.
    """
    whole, outcome = Files.write, []

    def no_room(self, name, *chunks):
        (self._path / name).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "no room")

    for background in (True, False):
        saver._background = background
        if topology.rank == topology.world_size - 1:
            Files.write = no_room
        saver.save(step, engine, {"step": step}, {})
        try:
            saver.settle()
        except StorageError as error:
            outcome.append([error.exit_code, error.everywhere, error.cause])
        Files.write = whole
        barrier(topology)
        outcome.append(sorted(path.name for path in home.iterdir()) if home.exists() else [])
        barrier(topology)
    saver._background = True
    return outcome


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
        everywhere = [
            run_ranks(chain_job, world, directory, place, timeout=280) for place, world in enumerate(WORLDS)
        ]
    for ranks in everywhere:
        assert all(rank[FAILING]["failed"] == ranks[0][FAILING]["failed"] for rank in ranks)
    results = [ranks[0] for ranks in everywhere]
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


@pytest.mark.timeout(600)
def test_every_rank_writes_its_share(chains):
    results, _ = chains
    for place, world in enumerate(WORLDS):
        for chain, outcome in enumerate(results[place]):
            shares = [0] * world
            for file, size in outcome["files"].items():
                if file.endswith(".safetensors"):
                    shares[int(file.partition("-")[2].partition(".")[0]) % world] += size
            # The embedding is a third of the weights, and tensors are not cut.
            assert max(shares) < 1.5 * sum(shares) / world, name(chain, place)
            assert min(shares) > 0.5 * sum(shares) / world, name(chain, place)


@pytest.mark.timeout(600)
def test_what_another_rank_writes_is_assembled_there_alone(chains):
    results, _ = chains
    for place, world in enumerate(WORLDS):
        for chain, outcome in enumerate(results[place]):
            is_owner = world == 1
            assert (outcome["given"] > 0) == is_owner, name(chain, place)
            assert (outcome["allocated"] > 0) == is_owner, name(chain, place)


@pytest.mark.timeout(600)
def test_one_rank_without_room_costs_that_save_on_all_and_leaves_nothing_behind(chains):
    results, _ = chains
    for place, world in enumerate(WORLDS):
        before = [f"step-{STEPS * place:09d}"] if place else []
        first, left, second, left_again = results[place][FAILING]["failed"]
        for code, everywhere, cause in (first, second):
            assert (code, everywhere) == (74, True)
            assert cause.startswith("no space left while writing")
            assert world == 1 or cause.endswith(f"(rank {world - 1})")
        assert left == left_again == before, name(FAILING, place)
