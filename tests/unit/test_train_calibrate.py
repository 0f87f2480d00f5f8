"""Measuring a CPU for the planner: the numbers reproduce the time of what was measured."""

import pytest
import torch

from distllm.dist.topology import Topology
from distllm.errors import LaunchError
from distllm.plan.calibration import read_calibration
from distllm.train import calibrate as measuring


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(measuring, "_REPEATS", 2)
    monkeypatch.setattr(measuring, "_ROWS", 1)
    monkeypatch.setattr(measuring, "_LENGTH", 128)
    monkeypatch.setattr(measuring, "_LARGE", 1 << 16)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_speeds_of_one_rank_are_positive_and_plausible(quick):
    found = measuring.measure(1, Topology.single())
    assert (found.threads, found.ranks) == (1, 1)
    assert 1e8 < found.gemm_flops < 1e13
    assert 1e7 < found.attention_flops < 1e13
    assert 1e6 < found.memory_bandwidth < 1e13
    assert 1e7 < found.update_bandwidth < 1e13
    assert found.reduce_seconds == 0


def test_what_is_left_of_a_block_becomes_memory_traffic(quick):
    """Faster products leave more of the same block to memory, and so a lower bandwidth."""
    tokens = measuring._ROWS * measuring._LENGTH
    gemm, attention = measuring._gemm_flops(tokens), measuring._attention_flops(tokens)
    low = measuring._bandwidth(tokens, gemm * 1e6, attention * 1e6)
    high = measuring._bandwidth(tokens, gemm / 1e6, attention / 1e6)
    assert 0 < low < high


@pytest.mark.slow
def test_seconds_are_those_of_the_cpu_and_not_of_the_clock(monkeypatch):
    monkeypatch.setattr(measuring, "_REPEATS", 2)
    import time

    assert measuring._seconds(lambda: time.sleep(0.2)) < 0.1


def test_a_rank_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "run_ranks", lambda *arguments, **named: 3)
    with pytest.raises(LaunchError, match="code 3"):
        measuring.calibrate(1, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.dist
def test_two_ranks_measure_together(tmp_path):
    path = measuring.calibrate(1, 2, tmp_path)
    found = read_calibration(tmp_path)
    assert path.exists()
    assert found.ranks == 2
    assert found.reduce_seconds > 0
    assert found.reduce_bandwidth > 1e6
