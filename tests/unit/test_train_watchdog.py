"""What a rank does about hangs: it answers a supervisor, and without one it watches itself."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distllm.cluster.hang import COLLECTIVES_SIGNAL, STACKS_SIGNAL
from distllm.heartbeat import read_beat
from distllm.observe.ledger import read_events
from distllm.train import signals
from distllm.train.signals import StopRequest

pytestmark = pytest.mark.slow

PRELUDE = """
import sys, threading, time
from pathlib import Path
from distllm.cluster.hang import Patience
from distllm.dist.topology import Topology, destroy_process_group, init_process_group
from distllm.heartbeat import HEARTBEAT
from distllm.train.watchdog import start_heartbeat, die_with_launcher, start_watchdog
run = Path("run")
topology = Topology.single()
def a_place_that_the_stack_shows():
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(script, **more):
    return subprocess.Popen([sys.executable, "-c", PRELUDE + script], text=True, **more)


def wait_for(condition, process, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None or condition(), f"it ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_stacks_and_exchanges_are_written_while_the_main_thread_is_away():
    script = """
import os
os.environ["TORCH_FR_BUFFER_SIZE"] = "10"
init_process_group(topology, 10)
start_heartbeat(run, topology)
HEARTBEAT.phase("compute", 3)
a_place_that_the_stack_shows()
"""
    beats = Path("run/beats")
    with start(script) as process:
        wait_for(lambda: (beat := read_beat(Path("run"), 0)) is not None and beat.step == 3, process)
        process.send_signal(STACKS_SIGNAL)
        process.send_signal(COLLECTIVES_SIGNAL)
        wait_for((beats / "rank-00000.collectives.json").exists, process)
        wait_for(lambda: (beats / "rank-00000.stacks.txt").stat().st_size > 0, process)
        time.sleep(0.2)
        assert process.poll() is None, "answering costs nothing"
        process.kill()
    assert "a_place_that_the_stack_shows" in (beats / "rank-00000.stacks.txt").read_text()
    assert "pg_config" in json.loads((beats / "rank-00000.collectives.json").read_text())


def test_a_rank_without_supervisor_that_hangs_says_so_and_ends():
    script = """
start_heartbeat(run, topology)
start_watchdog(run, topology, Patience(0.5, 60.0), attempt=4)
HEARTBEAT.count_step(0.01)
HEARTBEAT.phase("data", 9)
HEARTBEAT.reading(Path("web/train/3.tar"))
a_place_that_the_stack_shows()
"""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 70
    assert "distllm: the run hangs: rank 0 on " in done.stderr
    assert "hangs in data of step 10 (opened last: web/train/3.tar)" in done.stderr
    (event,) = read_events(Path("run/ledger.jsonl"))
    assert (event.kind, event.attempt, event.fields["ranks"]) == ("hang", 4, [0])
    assert event.fields["seconds"] >= 0.5
    assert "a_place_that_the_stack_shows" in Path("run/beats/rank-00000.stacks.txt").read_text()


def test_a_rank_that_moves_or_may_take_long_is_left_alone():
    script = """
start_heartbeat(run, topology)
start_watchdog(run, topology, Patience(0.5, 60.0), attempt=1)
HEARTBEAT.phase("save")
time.sleep(3)
HEARTBEAT.count_step(0.01)
for step in range(20):
    HEARTBEAT.phase("compute", step)
    time.sleep(0.1)
HEARTBEAT.close()
time.sleep(3)
print("fine")
"""
    with start(script, stdout=subprocess.PIPE) as process:
        output, _ = process.communicate(timeout=100)
    assert (process.returncode, output) == (0, "fine\n")


def test_a_rank_outlives_its_launcher_only_to_save():
    rank = (
        PRELUDE
        + """
import signal
def saved(*_):
    Path("saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, saved)
die_with_launcher()
Path("ready").touch()
time.sleep(60)
"""
    )
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}])"
    with subprocess.Popen([sys.executable, "-c", launcher]) as process:
        wait_for(Path("ready").exists, process)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while not Path("saved").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert Path("saved").exists()


@pytest.mark.parametrize(("launcher", "stops"), [("deepspeed.launcher.launch", True), ("torchrun", False)])
def test_only_the_runner_of_deepspeed_is_missed(monkeypatch, launcher, stops):
    parents = {os.getppid(): 4711}
    words = b"\0".join((b"python", b"-m", launcher.encode(), b"x"))
    monkeypatch.setattr(signals.Path, "read_bytes", lambda _: words)
    monkeypatch.setattr(signals, "_parent_of", parents.get)
    request = StopRequest()
    assert not request.requested
    parents[os.getppid()] = 1  # the runner died, and its child belongs to init now
    assert request.requested is stops
    assert (request.signal is signal.SIGTERM) is stops


def test_the_parent_of_a_process_is_read_from_the_kernel():
    assert signals._parent_of(os.getpid()) == os.getppid()
    assert signals._parent_of(2**22 + 1) is None


def test_a_hang_ends_the_rank_although_the_evidence_cannot_be_written():
    script = """
from distllm.train import watchdog
def full(path):
    raise OSError(28, "No space left on device")
watchdog.write_collectives = full
start_heartbeat(run, topology)
start_watchdog(run, topology, Patience(0.5, 60.0), attempt=1)
HEARTBEAT.phase("compute", 3)
HEARTBEAT.count_step(0.01)
a_place_that_the_stack_shows()
"""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 70
    assert "the hang could not be written down: [Errno 28]" in done.stderr
