"""The faults that a run can inflict on itself: how they are written, and that each is what it says."""

import math
import os
import resource
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distllm.config.compose import compose
from distllm.config.faults import KINDS, Fault, parse_fault
from distllm.config.resolve import resolve
from distllm.errors import ConfigError, ConfigProblems
from distllm.train import faults as inflicting
from distllm.train.faults import FaultyTask
from distllm.train.state import TrainState

FAULTS = st.builds(
    Fault, st.sampled_from(sorted(KINDS)), st.integers(1, 10**6), st.integers(0, 999), st.integers(1, 99)
)


@given(FAULTS)
def test_a_fault_is_read_as_it_is_written(fault):
    assert parse_fault(str(fault)) == fault


def test_rank_and_steps_have_defaults():
    assert parse_fault("nan@7") == Fault("nan", 7, rank=0, steps=1)
    assert parse_fault("spike@7x3") == Fault("spike", 7, rank=0, steps=3)


@pytest.mark.parametrize(
    ("text", "cause", "remedy"),
    [
        ("kil@3", "unknown kind of fault 'kil'", "kill"),
        ("kill", "cannot read the fault 'kill'", "KIND@STEP"),
        ("kill@-1", "cannot read", "KIND@STEP"),
        ("kill@3:one", "cannot read", "KIND@STEP"),
    ],
)
def test_a_mistyped_fault_says_how_to_write_it(text, cause, remedy):
    with pytest.raises(ConfigError) as caught:
        parse_fault(text)
    assert cause in caught.value.cause
    assert remedy in caught.value.remedy


def test_all_wrong_faults_of_a_configuration_are_reported():
    config = compose(["train.max_steps=5", "chaos.faults=[kil@3, kill@0, nan@4:9]"])
    with pytest.raises(ConfigProblems) as caught:
        resolve(config)
    assert [problem.where for problem in caught.value.problems] == ["chaos.faults"] * 3


class Quadratic:
    """A task whose loss is the sum of the squared weights."""

    unit, reads_text = "token", True

    def begin(self, model, batches, topology):
        pass

    def weight(self, batch):
        return 5

    def loss_sum(self, model, batch):
        return (model.weight**2).sum()


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """Make a task of faults, at a state that the test moves; signals are noted instead of sent."""
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid == os.getpid(), number)))

    def make(*faults):
        state = TrainState()
        return FaultyTask(Quadratic(), list(map(parse_fault, faults)), state, tmp_path), state, sent

    return make


def losses(task, state, steps, model):
    """The loss of the two micro-batches of each step."""
    seen = []
    for step in steps:
        state.step = step - 1
        seen.append([float(task.loss_sum(model, None).detach()) for _ in range(2)])
    return seen


@pytest.fixture
def model():
    linear = nn.Linear(3, 1, bias=False)
    nn.init.ones_(linear.weight)
    return linear


def test_a_fault_happens_in_its_steps_and_once_in_the_life_of_a_run(faulty, model):
    task, state, _ = faulty("spike@2x2", "nan@5")
    (spiked,) = {1000 * 3.0}
    first = losses(task, state, range(1, 7), model)
    assert first[:4] == [[3.0, 3.0], [spiked] * 2, [spiked] * 2, [3.0, 3.0]]
    assert all(map(math.isnan, first[4]))
    assert first[5] == [3.0, 3.0]
    again, state, _ = faulty("spike@2x2", "nan@5")
    assert losses(again, state, range(1, 7), model) == [[3.0, 3.0]] * 6
    assert task.weight(None) == 5


@pytest.mark.parametrize(
    ("kind", "number"), [("kill", signal.SIGKILL), ("term", signal.SIGTERM), ("stop", signal.SIGSTOP)]
)
def test_signals_go_to_the_rank_itself(faulty, model, kind, number):
    task, state, sent = faulty(f"{kind}@1")
    losses(task, state, [1], model)
    assert sent == [(True, number)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exactly_one_bit_flips(faulty, model, dtype):
    model.to(dtype)
    before = model.weight.detach().clone()
    task, state, _ = faulty("bit_flip@1")
    losses(task, state, [1], model)
    integers = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[dtype]
    changed = model.weight.detach().view(integers) ^ before.view(integers)
    assert [int(word).bit_count() for word in changed.view(-1)] == [0, 1, 0]


def test_the_allocator_itself_says_that_memory_is_exhausted(faulty, model):
    task, state, _ = faulty("out_of_memory@1")
    with pytest.raises(RuntimeError, match="allocate"):
        losses(task, state, [1], model)


def test_a_rank_leaves_out_one_exchange(faulty, model, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.distributed, "all_gather", lambda *_: asked.append(True))
    task, state, _ = faulty("skip_collective@1")
    losses(task, state, [1], model)
    mine, gathered = torch.tensor([7.0]), [torch.zeros(1), torch.zeros(1)]
    torch.distributed.all_gather(gathered, mine)
    assert (gathered, asked) == ([mine, mine], [])
    torch.distributed.all_gather(gathered, mine)
    assert asked == [True]


def test_a_wall_clock_jumps_back(faulty, model, monkeypatch):
    monkeypatch.setattr(inflicting.time, "time", lambda: 10000.0)
    task, state, _ = faulty("clock_skew@1")
    losses(task, state, [1], model)
    assert inflicting.time.time() == 10000.0 - 3600


def test_a_slow_rank_is_slow_also_where_all_are(faulty, model, monkeypatch):
    """Each pass takes a second: three more, and half a second once a step."""
    slept, clock = [], iter(range(1000))
    monkeypatch.setattr(inflicting.time, "sleep", slept.append)
    monkeypatch.setattr(inflicting.time, "perf_counter", lambda: float(next(clock)))
    task, state, _ = faulty("slow@1x3")
    losses(task, state, range(1, 6), model)
    assert slept == [inflicting.SLOW_SECONDS, 3.0, 3.0] * 3


def test_a_full_disk_refuses_checkpoints_but_not_logs_and_has_room_again(faulty, model, tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(bytes(1 << 16))
    task, state, _ = faulty("disk_full@2")
    try:
        losses(task, state, [1, 2], model)
        with log.open("ab") as stream:
            stream.write(bytes(1024))
        with pytest.raises(OSError, match="too large"):
            (tmp_path / "checkpoint").write_bytes(bytes(1 << 20))
        losses(task, state, [3], model)
        (tmp_path / "checkpoint").write_bytes(bytes(1 << 20))
    finally:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


@pytest.fixture
def checkpoints(tmp_path):
    """Two checkpoints; the fault must hit the largest file of the newer one."""
    for step in (4, 8):
        directory = tmp_path / "checkpoints" / f"step-{step:09d}"
        directory.mkdir(parents=True)
        (directory / "model").write_bytes(bytes(1000))
        (directory / "manifest.json").write_bytes(bytes(10))
    return tmp_path / "checkpoints"


def test_a_checkpoint_is_damaged_and_then_the_rank_dies(faulty, model, checkpoints):
    task, state, sent = faulty("flip_checkpoint@1", "truncate_checkpoint@2", "delete_checkpoint@3")
    victim = checkpoints / "step-000000008" / "model"
    losses(task, state, [1], model)
    assert sum(victim.read_bytes()) == 1
    losses(task, state, [2], model)
    assert victim.stat().st_size == 500
    losses(task, state, [3], model)
    assert not victim.exists()
    assert sent == [(True, signal.SIGKILL)] * 3
    assert (checkpoints / "step-000000004" / "model").read_bytes() == bytes(1000)
