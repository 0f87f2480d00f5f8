import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from distllm.cluster.lease import LEASE_SECONDS
from distllm.data.batch import Batch
from distllm.data.digest import batch_digest
from distllm.errors import CheckpointError, RunDirectoryBusy, StorageError
from distllm.train import clock
from distllm.train.clock import Phases, StepClock
from distllm.train.run_directory import RunDirectory
from distllm.train.signals import STOPPING, StopRequest
from distllm.train.state import TrainState

STATE = TrainState(
    step=7,
    samples=56,
    tokens=1792,
    trained_samples=32,
    skipped_samples=8,
    damaged_samples=8,
    skipped_steps=2,
    skips_in_a_row=1,
    streak_samples=48,
    rewinds=1,
    excluded=[[16, 24]],
    agreed_step=6,
    recent_losses=[3.5, 3.25],
    recent_grad_norms=[0.5, 0.25],
    chain="c0ffee",
    weights_fingerprint="f00d",
    seconds=12.5,
    best_metric=3.1,
    evaluations_since_best=2,
    evaluated_step=40,
    epsilon=1.5,
)


def test_a_state_survives_json():
    values = json.loads(json.dumps(STATE.to_dict()))
    assert TrainState.from_dict(values) == STATE
    assert TrainState.from_dict({**values, "of_a_later_version": 1}) == STATE
    assert all(values[name] != default for name, default in TrainState().to_dict().items())


def test_a_state_becomes_that_of_a_checkpoint_for_all_who_hold_it():
    held = TrainState(step=9, rewinds=3)
    held.restore(STATE.to_dict())
    assert held == STATE


def test_what_an_older_version_did_not_count_begins_at_its_default():
    values = TrainState(step=7, samples=56, tokens=1792).to_dict()
    del values["recent_losses"], values["rewinds"]
    assert TrainState.from_dict(values) == TrainState(step=7, samples=56, tokens=1792)


@pytest.mark.parametrize("position", ["step", "samples", "tokens"])
def test_a_checkpoint_without_its_position_is_damaged(position):
    values = STATE.to_dict()
    del values[position]
    with pytest.raises(CheckpointError, match=position):
        TrainState.from_dict(values)


@pytest.mark.parametrize(
    ("excluded", "samples", "expected"),
    [
        ([], 8, 8),
        ([[8, 16]], 0, 0),
        ([[8, 16]], 8, 16),
        ([[8, 16]], 15, 16),
        ([[8, 16]], 16, 16),
        ([[16, 24], [8, 16]], 8, 24),
        ([[8, 24], [12, 16]], 8, 24),
    ],
)
def test_the_next_step_begins_behind_what_is_excluded(excluded, samples, expected):
    assert TrainState(samples=samples, excluded=excluded).next_samples() == expected


@pytest.fixture
def now(monkeypatch):
    """The time that the step clock reads; tests move it."""
    time = [100.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: time[0])
    return time


def spend(now, step_clock, *phases):
    for seconds, phase in phases:
        now[0] += seconds
        step_clock.mark(phase)


def test_phases_sum_to_the_wall_and_a_phase_may_come_twice(now):
    step_clock = StepClock()
    spend(
        now,
        step_clock,
        (1, "data"),
        (4, "compute"),
        (2, "data"),
        (8, "compute"),
        (16, "update"),
        (32, "loop"),
    )
    phases = step_clock.lap()
    assert phases == Phases(data=3, compute=12, update=16, loop=32)
    assert phases.total == now[0] - 100.0


def test_a_lap_begins_at_the_last_mark_and_forgets_what_was_charged(now):
    step_clock = StepClock()
    spend(now, step_clock, (1, "data"))
    now[0] += 2
    assert step_clock.lap() == Phases(1, 0, 0, 0)
    now[0] += 3
    spend(now, step_clock, (1, "loop"))
    assert step_clock.lap() == Phases(0, 0, 0, 6)


def test_time_before_a_restart_belongs_to_no_step(now):
    step_clock = StepClock()
    spend(now, step_clock, (1, "data"))
    now[0] += 50
    step_clock.restart()
    spend(now, step_clock, (2, "update"))
    assert step_clock.lap() == Phases(0, 0, 2, 0)


@pytest.fixture
def stop():
    """An installed request; the handlers of before come back."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    request = StopRequest()
    request.install()
    yield request
    for number, handler in before.items():
        signal.signal(number, handler)


def test_nothing_is_requested_at_first(stop):
    assert not stop.requested
    assert stop.signal is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_is_noted_and_does_not_interrupt(stop, number):
    signal.raise_signal(number)
    assert stop.requested
    assert stop.signal is number


def test_a_second_interrupt_stops_at_once(stop):
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_after_another_signal_is_the_first_of_its_kind(stop):
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        signal.raise_signal(number)
    assert stop.signal is signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


CLAIM = """
import sys
from pathlib import Path
from distllm.train.run_directory import RunDirectory
RunDirectory(Path(sys.argv[1])).claim()
print("claimed", flush=True)
sys.stdin.read()
"""


def owner(directory):
    return json.loads((directory / "owner.json").read_text())


def test_a_claimed_directory_is_released_by_its_owner(tmp_path):
    run = RunDirectory(tmp_path / "runs" / "one")
    run.claim()
    assert owner(run.path)["pid"] == os.getpid()
    with pytest.raises(RunDirectoryBusy, match=f"pid {os.getpid()} on {socket.gethostname()}"):
        RunDirectory(run.path).claim()
    run.release()
    run.release()
    assert list(run.path.iterdir()) == []


def test_a_directory_belongs_to_a_process_while_it_lives(tmp_path):
    command = [sys.executable, "-c", CLAIM, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"claimed\n"
        with pytest.raises(RunDirectoryBusy) as caught:
            RunDirectory(tmp_path).claim()
        RunDirectory(tmp_path).release()
        assert owner(tmp_path)["pid"] == other.pid
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        RunDirectory(tmp_path).claim()  # dead although nobody has waited for it
    assert f"pid {other.pid}" in caught.value.cause
    assert f"kill {other.pid}" in caught.value.remedy
    assert caught.value.where == str(tmp_path / "owner.json")
    assert owner(tmp_path)["pid"] == os.getpid()


def test_a_pid_that_is_used_again_is_not_the_owner(tmp_path):
    run = RunDirectory(tmp_path)
    run.claim()
    claim = owner(tmp_path)
    (tmp_path / "owner.json").write_text(json.dumps({**claim, "started": claim["started"] - 1}))
    run.claim()
    assert owner(tmp_path)["started"] == claim["started"]


def test_a_process_of_another_machine_counts_as_alive_until_its_lease_expires(tmp_path):
    claim = {"host": "elsewhere", "pid": 2**22 + 1, "started": 1}
    (tmp_path / "owner.json").write_text(json.dumps(claim))
    with pytest.raises(RunDirectoryBusy, match="on elsewhere, lease renewed 0 s ago") as caught:
        RunDirectory(tmp_path).claim()
    assert "if elsewhere is dead, the lease expires in 60 s" in caught.value.remedy
    assert owner(tmp_path) == claim
    expired = time.time() - LEASE_SECONDS - 5
    os.utime(tmp_path / "owner.json", (expired, expired))
    RunDirectory(tmp_path).claim()
    assert owner(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("content", ["", '{"host": "here', '{"host": "here", "pid": 1}'])
def test_an_owner_killed_while_claiming_owns_nothing(tmp_path, content):
    (tmp_path / "owner.json").write_text(content)
    RunDirectory(tmp_path).claim()
    assert owner(tmp_path)["pid"] == os.getpid()


def test_a_file_in_place_of_the_directory_is_a_storage_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match="is a file"):
        RunDirectory(tmp_path / "run").claim()


TOKENS_NT = np.random.default_rng(0).integers(0, 500, (12, 16), dtype=np.int32)


def batch(tokens_BT, sample_ids_B):
    positions_BT = np.zeros_like(tokens_BT)
    ids_B = np.asarray(sample_ids_B, dtype=np.int64)
    return Batch(tokens_BT, tokens_BT, positions_BT, positions_BT, ids_B)


def digest(tokens_NT, rows_of_batches):
    return batch_digest(batch(tokens_NT[rows], rows) for rows in rows_of_batches)


WHOLE = digest(TOKENS_NT, [range(12)])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_every_division_of_the_rows_has_the_same_digest(size):
    cut = [range(start, start + size) for start in range(0, 12, size)]
    assert digest(TOKENS_NT, cut) == WHOLE
    ranks = [[list(range(rank, 12, size))] for rank in range(size)]
    assert sum(digest(TOKENS_NT, rows) for rows in ranks) == WHOLE
    assert digest(TOKENS_NT, [list(reversed(range(12)))]) == WHOLE


def test_the_digest_notices_a_token_a_swap_and_a_row():
    other_NT = TOKENS_NT.copy()
    other_NT[5, 7] += 1
    swapped_NT = TOKENS_NT.copy()
    swapped_NT[3, :2] = TOKENS_NT[3, 1::-1]
    assert swapped_NT[3, 0] != TOKENS_NT[3, 0]
    exchanged = [*range(10), 11, 10]
    digests = {
        WHOLE,
        digest(other_NT, [range(12)]),
        digest(swapped_NT, [range(12)]),
        batch_digest([batch(TOKENS_NT, exchanged)]),
        digest(TOKENS_NT, [range(11)]),
        digest(TOKENS_NT, [range(12), [0]]),
    }
    assert len(digests) == 6


def test_the_digest_is_pinned_and_a_sum_of_32_bits_a_row():
    assert batch_digest([]) == 0
    assert batch_digest([batch(np.arange(4, dtype=np.int32)[None], [9])]) == 275201503
    assert 0 < WHOLE < 12 * 2**32
