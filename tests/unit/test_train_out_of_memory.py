"""Out of memory: what the next attempt learns from it."""

from dataclasses import replace

import pytest
import torch

from distllm.config.memory_limit import MemoryLimit, read_memory_limit, write_memory_limit
from distllm.config.resolve import World, resolve
from distllm.config.schema import Config
from distllm.dist.topology import Topology
from distllm.errors import ConfigError, IntegrityError, OutOfMemory
from distllm.train.out_of_memory import memory_errors
from distllm.train.state import TrainState

RANK_1 = Topology(rank=1, local_rank=1, world_size=2, local_world_size=2, device=torch.device("cpu"))
LIMIT = MemoryLimit(micro_batch_tokens=4096, step=8, rank=1, report="2.0 GiB held")


def resolved(micro_batch_tokens=4096, limit=None):
    """32 sequences of 512 tokens in a step of two ranks: 16 for each."""
    config = replace(
        Config(),
        train=replace(Config().train, max_steps=10),
        engine=replace(Config().engine, micro_batch_tokens=micro_batch_tokens),
    )
    return resolve(config, world=World(2, 2, "test"), memory_limit=limit, starts_here=False)


def fail(error, tmp_path, **geometry):
    with memory_errors(resolved(**geometry), TrainState(step=7), RANK_1, tmp_path):
        raise error


def cpu_refusal():
    """What torch raises when main memory is exhausted."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    "error", [cpu_refusal(), MemoryError(), torch.OutOfMemoryError("CUDA out of memory")]
)
def test_whatever_allocator_refuses_the_micro_batch_is_noted(tmp_path, error):
    with pytest.raises(
        OutOfMemory, match="rank 1 ran out of memory in step 8 with micro-batches of 8"
    ) as caught:
        fail(error, tmp_path)
    assert caught.value.exit_code == 70
    assert "at most 2048 tokens" in caught.value.remedy
    found = read_memory_limit(tmp_path)
    assert (found.micro_batch_tokens, found.step, found.rank) == (4096, 8, 1)
    assert "of main memory held" in found.report
    assert found.path == str(tmp_path / "memory.json")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("no memory of it")])
def test_other_errors_pass(tmp_path, error):
    with pytest.raises(type(error), match=str(error)):
        fail(error, tmp_path)
    assert read_memory_limit(tmp_path) is None


def test_a_single_sequence_that_does_not_fit_is_a_matter_of_the_configuration(tmp_path):
    with pytest.raises(ConfigError, match="micro-batches of 1 sequences") as caught:
        fail(MemoryError(), tmp_path, micro_batch_tokens=512)
    assert caught.value.exit_code == 64
    assert read_memory_limit(tmp_path) is None


def test_the_next_attempt_halves_and_accumulates_twice_as_much():
    before, after = resolved(), resolved(limit=LIMIT)
    assert (before.micro_batch_size, before.grad_accum_steps) == (8, 2)
    assert (after.micro_batch_size, after.grad_accum_steps) == (4, 4)
    assert after.sequences_per_step == before.sequences_per_step
    assert "rank 1 ran out of memory in step 8" in after.derivations["micro_batch_size"].formula
    assert after.deepspeed["train_micro_batch_size_per_gpu"] == 4


def test_a_smaller_micro_batch_that_was_asked_for_stays():
    settled = resolved(micro_batch_tokens=1024, limit=LIMIT)
    assert settled.micro_batch_size == 2
    assert "engine.micro_batch_tokens" in settled.derivations["micro_batch_size"].formula


def test_the_smallest_micro_batch_is_one_sequence():
    assert resolved(limit=replace(LIMIT, micro_batch_tokens=600)).micro_batch_size == 1


def test_a_limit_survives_its_file_and_a_strange_file_is_named(tmp_path):
    write_memory_limit(tmp_path, LIMIT)
    assert read_memory_limit(tmp_path) == replace(LIMIT, path=str(tmp_path / "memory.json"))
    (tmp_path / "memory.json").write_text('{"tokens": 3}')
    with pytest.raises(IntegrityError) as caught:
        read_memory_limit(tmp_path)
    assert caught.value.remedy == f"delete {tmp_path / 'memory.json'}"
