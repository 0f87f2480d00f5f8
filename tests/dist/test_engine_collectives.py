import functools
import importlib
import sys
import tempfile
import time
from pathlib import Path

import pytest
from ranks import run_ranks

from distllm.dist.collectives import (
    barrier,
    broadcast_json,
    gather_over_ranks,
    max_over_ranks,
    sum_over_ranks,
)
from distllm.dist.topology import Topology
from distllm.errors import LaunchError

VALUE = {"path": "é", "steps": [1, 2**53, 0.1], "none": None}


def exchanges(topology):
    rank = topology.rank
    return {
        "sum": sum_over_ranks([rank, 2**53 - 1 if rank == 0 else -1, 0.1], topology),
        "max": max_over_ranks([rank, -rank], topology),
        "gather": gather_over_ranks([rank, 0.5], topology),
        "json": broadcast_json(VALUE if rank == 0 else "ignored", topology),
        "empty": broadcast_json(None, topology),
        "barrier": barrier(topology),
    }


def test_one_rank_needs_no_process_group():
    alone = exchanges(Topology.single())
    assert alone["sum"] == [0, 2**53 - 1, 0.1]
    assert alone["max"] == [0, 0]
    assert alone["gather"] == [[0, 0.5]]
    assert alone["json"] == VALUE


def talk_then_hang(topology, directory):
    """Exchange numbers; then rank 1 hangs while rank 0 is in DeepSpeed's own group, and leaves when told."""
    import torch
    from engine_jobs import make_engine, train_step

    importlib.import_module("distllm.dist.local")
    report = {"exchanges": exchanges(topology), "deepspeed": "deepspeed" in sys.modules}
    engine = make_engine(topology, "deepspeed", 2, "fp32", timeout=2)
    train_step(engine, topology, 0)
    noticed = Path(directory) / "noticed"
    if topology.rank == 1:
        while not noticed.exists():
            time.sleep(0.05)
        return report
    loss = engine.model(torch.zeros((1, 3), dtype=torch.int64)).sum()
    started = time.monotonic()
    with pytest.raises(LaunchError) as hung:
        engine.backward(loss)
    waited = time.monotonic() - started
    noticed.touch()
    with pytest.raises(LaunchError) as gone:
        sum_over_ranks([1], topology)
    return {**report, "waited": waited, "hung": str(hung.value), "gone": str(gone.value)}


@functools.cache
def talked():
    with tempfile.TemporaryDirectory() as directory:
        return run_ranks(talk_then_hang, 2, directory, fresh=True)


@pytest.mark.dist
def test_two_ranks_exchange_numbers():
    first, second = (rank["exchanges"] for rank in talked())
    assert first == second
    assert first["sum"] == [1, 2**53 - 2, 0.2]
    assert first["max"] == [1, 0]
    assert first["gather"] == [[0, 0.5], [1, 0.5]]
    assert first["json"] == VALUE
    assert first["empty"] is None


@pytest.mark.dist
def test_a_rank_that_hangs_in_deepspeed_is_noticed_within_the_timeout():
    outcome = talked()[0]
    assert 1 < outcome["waited"] < 60, "DeepSpeed's own timeout is half an hour"
    assert "rank 0 lost another rank while" in outcome["hung"]
    assert "rank 0 lost another rank while summing numbers" in outcome["gone"]


@pytest.mark.dist
def test_deepspeed_is_imported_only_for_its_engine():
    assert talked()[0]["deepspeed"] is False


def fail_on_rank_one(topology):
    if topology.rank == 1:
        raise ZeroDivisionError("on purpose")
    time.sleep(30)


@pytest.mark.dist
def test_the_helper_reports_a_failing_rank_and_ends_the_others():
    started = time.monotonic()
    with pytest.raises(AssertionError, match=r"(?s)rank 1.*ZeroDivisionError: on purpose"):
        run_ranks(fail_on_rank_one, 2)
    assert time.monotonic() - started < 25
