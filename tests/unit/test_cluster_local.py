import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from distllm.cluster import local
from distllm.cluster.local import FORWARDED, explain_exit, run_ranks
from distllm.errors import LaunchError

# What every rank's script begins with; ``ready`` tells the test that this rank is where it should be.
PRELUDE = """
import json, os, pathlib, signal, sys, time
rank = int(os.environ["RANK"])
def note(name, text=""):
    part = pathlib.Path(f"{name}{rank}.part")
    part.write_text(text)
    part.rename(f"{name}{rank}")
def others_ready(n):
    while not all(pathlib.Path(f"ready{i}").exists() for i in range(n) if i != rank):
        time.sleep(0.01)
def wait(): time.sleep(60)
"""


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """Ranks write into their working directory; the launcher looks after them more often than usual."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "_POLL_SECONDS", 0.02)
    return tmp_path


def launch(script, num_ranks=2, threads_per_rank=1):
    command = ["-c", PRELUDE + script]
    return run_ranks(command, num_ranks=num_ranks, threads_per_rank=threads_per_rank)


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_gone(pid):
    """Whether a process is dead, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_each_rank_is_told_its_place_and_where_to_meet(monkeypatch):
    monkeypatch.setenv("KEPT", "as it was")
    monkeypatch.setenv("RANK", "9")
    assert launch("note('env', json.dumps(dict(os.environ)))", num_ranks=3, threads_per_rank=5) == 0
    seen = [json.loads(Path(f"env{rank}").read_text()) for rank in range(3)]
    for rank, env in enumerate(seen):
        assert (env["RANK"], env["LOCAL_RANK"]) == (str(rank), str(rank))
        assert (env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"]) == ("3", "3")
        assert (env["OMP_NUM_THREADS"], env["KEPT"]) == ("5", "as it was")
    (meeting,) = {(env["MASTER_ADDR"], env["MASTER_PORT"]) for env in seen}
    with socket.socket() as server:
        server.bind((meeting[0], int(meeting[1])))
    assert os.environ["RANK"] == "9"


def test_arguments_reach_the_script_under_this_python():
    command = ["-c", PRELUDE + "note('got', json.dumps([sys.executable, *sys.argv[1:]]))", "a b", "--x=1"]
    assert run_ranks(command, num_ranks=1, threads_per_rank=1) == 0
    assert json.loads(Path("got0").read_text()) == [sys.executable, "a b", "--x=1"]


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("", 0),
        ("sys.exit(75)", 75),
        ("sys.exit(75 * (rank == 1))", 75),
        ("raise RuntimeError", 1),
        # an error counts more than a stop that another rank was ready for
        ("sys.exit(75 if rank == 0 else 65)", 65),
    ],
)
def test_the_exit_code_is_that_of_the_ranks(script, code):
    assert launch(script) == code


def test_a_rank_that_fails_ends_the_others():
    script = "note('ready', str(os.getpid()))\nothers_ready(3)\nsys.exit(65) if rank == 1 else wait()"
    assert launch(script, num_ranks=3) == 65
    assert all(is_gone(Path(f"ready{rank}").read_text()) for rank in range(3))


def test_a_rank_that_fails_ends_the_others_although_one_has_stopped():
    script = """
note('ready')
others_ready(3)
if rank == 0: sys.exit(75)
if rank == 1: wait()
time.sleep(0.2)
sys.exit(65)
"""
    assert launch(script, num_ranks=3) == 65


def test_a_rank_that_stops_with_75_leaves_the_others_time_to_save():
    script = "sys.exit(75) if rank == 0 else (time.sleep(0.3), note('saved'), sys.exit(75))"
    assert launch(script) == 75
    assert Path("saved1").exists()


def test_the_others_are_asked_before_they_are_killed():
    script = """
signal.signal(signal.SIGTERM, lambda *_: (note('asked'), sys.exit(0)))
note('ready')
others_ready(2)
sys.exit(65) if rank == 1 else wait()
"""
    assert launch(script) == 65
    assert Path("asked0").exists()


def test_a_rank_deaf_to_the_request_is_killed(monkeypatch):
    monkeypatch.setattr(local, "_GRACE_SECONDS", 0.2)
    script = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
note('ready', str(os.getpid()))
others_ready(2)
sys.exit(65) if rank == 1 else wait()
"""
    began = time.monotonic()
    assert launch(script) == 65
    assert is_gone(Path("ready0").read_text())
    assert time.monotonic() - began < 30


def test_a_killed_rank_gives_the_shells_code_and_is_explained():
    code = launch("os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else wait()")
    assert code == 137
    with pytest.raises(LaunchError) as caught:
        explain_exit(code)
    assert caught.value.cause == "a rank was killed by SIGKILL"
    assert "engine.micro_batch_tokens" in caught.value.remedy


@pytest.mark.parametrize("code", [0, 1, 64, 65, 75, 128, 130, 255])
def test_an_exit_that_is_no_signal_was_explained_by_the_rank_itself(code):
    assert explain_exit(code) is None


@pytest.mark.parametrize("number", FORWARDED)
def test_a_signal_reaches_every_rank_and_the_launcher_stays(number):
    def interrupt_when_ready():
        if wait_for(lambda: Path("ready0").exists() and Path("ready1").exists()):
            os.kill(os.getpid(), number)

    script = f"""
signal.signal({int(number)}, lambda got, _: (note('got', str(got)), sys.exit(75)))
note('ready')
wait()
"""
    before = [signal.getsignal(each) for each in FORWARDED]
    thread = threading.Thread(target=interrupt_when_ready)
    thread.start()
    assert launch(script) == 75
    thread.join()
    assert [Path(f"got{rank}").read_text() for rank in range(2)] == [str(int(number))] * 2
    assert [signal.getsignal(each) for each in FORWARDED] == before


def test_ranks_have_a_session_of_their_own():
    """Ctrl-C of a terminal reaches only the launcher, which forwards it once."""
    assert launch("note('session', str(os.getsid(0) == os.getpid()))") == 0
    assert [Path(f"session{rank}").read_text() for rank in range(2)] == ["True", "True"]


def test_ranks_die_with_a_launcher_that_is_killed():
    script = "note('ready', str(os.getpid()))\nwait()"
    launcher = f"""
from distllm.cluster.local import run_ranks
run_ranks({["-c", PRELUDE + script]!r}, num_ranks=2, threads_per_rank=1)
"""
    with subprocess.Popen([sys.executable, "-c", launcher]) as process:
        ready = wait_for(lambda: Path("ready0").exists() and Path("ready1").exists())
        process.kill()
    assert ready
    pids = [int(Path(f"ready{rank}").read_text()) for rank in range(2)]
    try:
        assert wait_for(lambda: all(map(is_gone, pids)), seconds=10)
    finally:
        for pid in pids:
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("failed", "ended", "asked", "code", "rank"),
    [
        ([None, -9], [-15, -9], None, 137, 1),
        ([70, None], [70, 65], None, 65, 1),
        ([70, 70], [70, 70], None, 70, 0),
        ([-15, None], [-15, -15], signal.SIGTERM, 75, None),
        ([-9, None], [-9, -15], signal.SIGTERM, 137, 0),
        ([75, 0], [75, 0], None, 75, None),
        ([None, 1], [75, 1], None, 1, 1),
    ],
)
def test_the_cause_of_an_end_is_told_from_its_consequences(failed, ended, asked, code, rank):
    end = local._judge(failed, ended, False, asked)
    assert (end.code, end.rank) == (code, rank)
    assert local._judge(failed, ended, True, asked) == local.RanksEnd(70, None, given_up=True)


def test_ranks_of_one_machine_talk_over_the_loopback_interface(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert launch("note('net', os.environ['GLOO_SOCKET_IFNAME'])") == 0
    assert Path("net0").read_text() == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert launch("note('net', os.environ['GLOO_SOCKET_IFNAME'])") == 0
    assert Path("net0").read_text() == "eth7"


def test_a_watch_that_gives_the_ranks_up_has_them_killed():
    ranks = local.Ranks()
    script = (
        PRELUDE + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote('ready', str(os.getpid()))\nwait()"
    )
    end = ranks.run(
        ["-c", script],
        num_ranks=2,
        threads_per_rank=1,
        watch=lambda _: Path("ready0").exists() and Path("ready1").exists(),
        variables={"MORE": "1"},
    )
    assert end == local.RanksEnd(70, None, given_up=True)
    assert all(is_gone(Path(f"ready{rank}").read_text()) for rank in range(2))


def test_a_request_that_came_while_ranks_were_started_reaches_them():
    ranks = local.Ranks()
    ranks.asked = signal.SIGTERM
    end = ranks.run(["-c", "import time; time.sleep(60)"], num_ranks=2, threads_per_rank=1)
    assert end == local.RanksEnd(75)
