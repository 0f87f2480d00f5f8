"""What is started again, how often, and what is written down about it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from distllm.cluster import local, supervise
from distllm.cluster.hang import Patience
from distllm.cluster.lease import Lease
from distllm.cluster.supervise import Job
from distllm.errors import RunDirectoryBusy
from distllm.heartbeat import Beat
from distllm.observe.ledger import Ledger, read_events

pytestmark = pytest.mark.slow

# Longer than a busy machine keeps a rank from what it does between its last beat and its next move.
FLOOR = 1.5

# A rank counts its starts in the run directory, and may leave what looks like a checkpoint there.
PRELUDE = """
import os, pathlib, signal, sys, time
run, rank = pathlib.Path("run"), int(os.environ["RANK"])
starts = len(list(run.glob(f"start{rank}-*"))) + 1
(run / f"start{rank}-{starts}").touch()
def checkpoint(step): (run / "checkpoints" / f"step-{step:09d}").mkdir(parents=True)
def die(): os.kill(os.getpid(), signal.SIGKILL)
"""
BEAT = """
from distllm.heartbeat import HEARTBEAT
HEARTBEAT.open(run, rank)
HEARTBEAT.count_step(0.01)
HEARTBEAT.phase("compute", 4)
"""


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "_POLL_SECONDS", 0.02)
    return tmp_path


def job(script, num_ranks=1, max_restarts=2):
    return Job(["-c", PRELUDE + script], Path("run"), num_ranks, 1, max_restarts, Patience(FLOOR, 60.0))


def starts(rank=0):
    return len(list(Path("run").glob(f"start{rank}-*")))


def events():
    path = Path("run/ledger.jsonl")
    return [(event.kind, event.fields) for event in read_events(path)] if path.exists() else []


@pytest.mark.parametrize("code", [0, 64, 65, 74, 75, 130])
def test_an_end_with_a_meaning_is_final(code):
    assert supervise.supervise(job(f"sys.exit({code})")) == code
    assert starts() == 1
    assert events() == []
    assert not Path("run/owner.json").exists()


@pytest.mark.parametrize("code", [1, 70, 3])
def test_a_failure_is_tried_again_as_often_as_allowed(code, capfd):
    assert supervise.supervise(job(f"sys.exit({code})")) == code
    assert starts() == 3
    assert [kind for kind, _ in events()] == ["restart"] * 2
    assert "2 restarts brought no new checkpoint" in capfd.readouterr().err


FAIL = """
from distllm.observe.ledger import Ledger
ledger = Ledger(run / "ledger.jsonl", starts)
ledger.event("attempt")
def fail(step, error="TrainingError", cause="no way on"):
    ledger.event("failed", step=step, error=error, cause=cause)
    sys.exit(70)
"""


def test_the_same_failure_at_the_same_step_is_not_tried_a_third_time(capfd):
    # The second attempt saved something and got to the same end: that was no progress.
    script = FAIL + "if starts == 2: checkpoint(4)\nfail(7)"
    assert supervise.supervise(job(script, max_restarts=9)) == 64
    assert starts() == 2
    said = capfd.readouterr().err
    assert "not restarted: the same failure at step 7 as in the attempt before: TrainingError" in said


@pytest.mark.parametrize(
    "script",
    [
        "fail(starts)",
        "fail(7, cause=f'seed {starts}')",
        "fail(7, error='KeyError' if starts % 2 else 'ValueError')",
        "fail(7, error='LaunchError')",
        "die() if starts == 2 else fail(7)",
        "sys.exit(70)",
    ],
)
def test_a_failure_that_differs_or_may_pass_is_tried_as_often_as_allowed(script):
    assert supervise.supervise(job(FAIL + script)) in (70, 137)
    assert starts() == 3


def test_an_attempt_that_did_not_begin_is_not_judged_by_those_before_it():
    Path("run").mkdir()
    ledger = Ledger(Path("run/ledger.jsonl"), 1)
    for _ in range(2):
        ledger.event("attempt")
        ledger.event("failed", step=7, error="TrainingError", cause="no way on")
    assert supervise.supervise(job("sys.exit(70)")) == 70
    assert starts() == 3
    assert supervise.supervise(job(FAIL + "fail(7)")) == 64
    assert starts() == 4, "nothing has changed since"


def test_progress_refills_the_budget():
    assert supervise.supervise(job("checkpoint(starts)\nsys.exit(70 * (starts < 6))", max_restarts=1)) == 0
    assert starts() == 6


def test_no_restart_where_none_is_allowed():
    assert supervise.supervise(job("die()", max_restarts=0)) == 137
    assert starts() == 1


def test_a_killed_rank_is_written_down_and_all_start_again():
    script = "die() if rank == 1 and starts == 1 else time.sleep(0 if starts > 1 else 60)"
    assert supervise.supervise(job(script, num_ranks=2)) == 0
    assert (starts(0), starts(1)) == (2, 2)
    assert events() == [("killed", {"rank": 1, "signal": "SIGKILL"}), ("restart", {"restart": 1, "of": 2})]


def test_a_rank_that_names_the_cause_wins_over_one_that_lost_it():
    script = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(65))
(run / f"ready{rank}").touch()
while not all((run / f"ready{i}").exists() for i in range(2)): time.sleep(0.01)
sys.exit(70) if rank == 0 else time.sleep(60)
"""
    assert supervise.supervise(job(script, num_ranks=2)) == 65


def test_ranks_that_stand_still_are_named_killed_and_started_again(capfd):
    stop = "os.kill(os.getpid(), signal.SIGSTOP)"
    script = f"{BEAT}\nif starts == 1:\n  {stop} if rank == 1 else time.sleep(60)"
    assert supervise.supervise(job(script, num_ranks=2)) == 0
    (hang, facts), (restart, _) = events()
    assert (hang, restart) == ("hang", "restart")
    assert facts["ranks"] == [1]
    assert facts["hosts"] == [socket.gethostname()]
    assert facts["cause"].startswith(f"rank 1 on {socket.gethostname()} is stopped (SIGSTOP)")
    assert facts["seconds"] >= FLOOR
    assert (Path("run") / facts["stacks"] / "rank-00001.json").exists()
    assert "the run hangs: rank 1" in capfd.readouterr().err


@pytest.mark.parametrize(("p99", "limit"), [(0.1, 10.0), (5.0, 15.0)])
def test_a_hang_is_noticed_when_patience_ends_and_not_later(monkeypatch, p99, limit):
    clock, noticed = [0.0], []
    still = Beat(0, phase="compute", steps_here=9, p99_seconds=p99, moved=100.0)
    monkeypatch.setattr(supervise.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(supervise, "read_beat", lambda *_: still)
    monkeypatch.setattr(supervise, "is_stopped", lambda _: False)
    monkeypatch.setattr(supervise._Watch, "_write_down", lambda *_: noticed.append(clock[0]))
    rank = subprocess.Popen([sys.executable, "-c", ""])
    rank.wait()
    lease = Lease(Path("owner"), "t")
    lease.released = True
    watch = supervise._Watch(replace(job("pass"), patience=Patience(10.0, 60.0)), lease)
    for tenths in range(1000, 1200):
        clock[0] = tenths / 10
        if watch([rank]):
            break
    (moment,) = noticed
    assert limit <= moment - still.moved < limit + 0.2
    assert watch.hang.seconds == pytest.approx(moment - still.moved)


def test_ranks_that_never_begin_are_named():
    script = "time.sleep(0 if starts > 1 or rank == 0 else 60)\ntime.sleep(0 if starts > 1 else 60)"
    late = replace(job(script, num_ranks=2), patience=Patience(FLOOR, 5.0))
    assert supervise.supervise(late) == 0
    (hang, facts), _ = events()
    assert (hang, facts["ranks"]) == ("hang", [0, 1])
    assert facts["cause"].startswith("rank 0 and rank 1 did not start within ")


def test_a_phase_that_may_take_long_is_no_hang():
    script = f"{BEAT}\nHEARTBEAT.phase('save')\ntime.sleep({FLOOR + 2})"
    assert supervise.supervise(job(script)) == 0
    assert events() == []


def test_a_request_to_stop_ends_the_restarts():
    def ask():
        while not Path("run/start0-1").exists():
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=ask)
    thread.start()
    script = "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(70))\ntime.sleep(60)"
    assert supervise.supervise(job(script)) in (70, 75)
    thread.join()
    assert starts() == 1


def test_a_request_that_comes_before_the_ranks_listen_is_a_stop():
    def ask():
        while not Path("run/start0-1").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    assert supervise.supervise(job("time.sleep(60)")) == 75
    thread.join()


def test_the_supervisor_owns_the_directory_for_its_ranks():
    script = """
from distllm.train.run_directory import RunDirectory
directory = RunDirectory(run)
directory.claim()
assert directory.is_supervised
directory.release()
assert (run / "owner.json").exists()
"""
    assert supervise.supervise(job(script)) == 0
    assert not Path("run/owner.json").exists()


def test_a_second_supervisor_is_refused_at_once():
    code = "from pathlib import Path\nfrom distllm.cluster.lease import take_lease\n"
    code += "take_lease(Path('run'))\nprint('mine', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(RunDirectoryBusy, match=f"pid {other.pid}"):
            supervise.supervise(job("pass"))
        other.communicate("\n")
    assert starts() == 0


def test_an_owner_that_lost_its_lease_ends_its_ranks(monkeypatch):
    from distllm.cluster import lease

    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    script = "import json\n(run / 'owner.json').write_text(json.dumps("
    script += "{'host': 'n7', 'pid': 4, 'started': 1, 'token': 't'}))\ntime.sleep(60)"
    with pytest.raises(RunDirectoryBusy, match="lost its directory to pid 4 on n7"):
        supervise.supervise(job(script))
    assert json.loads(Path("run/owner.json").read_text())["token"] == "t"
