"""Who may write in a run directory: one of many, for as long as it says so."""

import errno
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from distllm.cluster import lease
from distllm.cluster.lease import LEASE_SECONDS, Lease, holds_lease, take_lease
from distllm.errors import RunDirectoryBusy, StorageError

RACER = """
import sys, time
from pathlib import Path
from distllm.errors import RunDirectoryBusy
from distllm.cluster.lease import take_lease
while not (Path(sys.argv[1]) / "go").exists(): time.sleep(0.001)
try:
    take_lease(Path(sys.argv[1]))
    print("mine", flush=True)
except RunDirectoryBusy:
    print("busy", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def now(monkeypatch):
    """A monotonic clock that only the test moves."""
    clock = [1000.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: clock[0])
    return clock


@pytest.mark.slow
def test_of_many_that_find_a_dead_owner_one_takes_over(tmp_path):
    dead = {"host": socket.gethostname(), "pid": os.getpid(), "started": 1, "token": "old"}
    (tmp_path / "owner.json").write_text(json.dumps(dead))
    command = [sys.executable, "-c", RACER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen(command, **pipes) for _ in range(8)]
    time.sleep(0.5)
    (tmp_path / "go").touch()
    said = [racer.stdout.readline().strip() for racer in racers]
    owner = json.loads((tmp_path / "owner.json").read_text())["pid"]
    for racer in racers:
        racer.communicate("")
    assert sorted(said) == ["busy"] * 7 + ["mine"]
    assert racers[said.index("mine")].pid == owner


def test_a_lease_is_renewed_now_and_then(tmp_path, now):
    mine = take_lease(tmp_path)
    os.utime(tmp_path / "owner.json", (1, 1))
    now[0] += 9
    mine.renew()
    assert (tmp_path / "owner.json").stat().st_mtime == 1
    now[0] += 2
    mine.renew()
    assert (tmp_path / "owner.json").stat().st_mtime > time.time() - LEASE_SECONDS


def test_an_owner_that_lost_its_lease_finds_out_and_leaves_the_other_alone(tmp_path, now):
    mine = take_lease(tmp_path)
    (tmp_path / "owner.json").write_text(
        json.dumps({"host": "node7", "pid": 42, "started": 1, "token": "other"})
    )
    now[0] += 61
    with pytest.raises(RunDirectoryBusy, match="lost its directory to pid 42 on node7"):
        mine.renew()
    mine.release()
    assert holds_lease(tmp_path, "other")
    assert not holds_lease(tmp_path, mine.token)


def test_a_released_lease_is_not_renewed(tmp_path, now):
    mine = take_lease(tmp_path)
    mine.release()
    now[0] += 60
    mine.renew()
    assert not (tmp_path / "owner.json").exists()


def test_an_owner_whose_file_is_gone_ends(tmp_path, now):
    mine = take_lease(tmp_path)
    (tmp_path / "owner.json").unlink()
    now[0] += 60
    with pytest.raises(RunDirectoryBusy, match="a process that has ended since"):
        mine.renew()


def test_a_file_server_that_fails_once_costs_nothing(tmp_path, now, monkeypatch):
    mine = take_lease(tmp_path)
    now[0] += 60
    monkeypatch.setattr(lease.os, "utime", lambda *_: (_ for _ in ()).throw(OSError("stale handle")))
    mine.renew()


def test_a_mutex_that_a_dead_process_left_is_broken(tmp_path):
    mutex = tmp_path / ".owner.lock"
    mutex.touch()
    os.utime(mutex, (1, 1))
    assert isinstance(take_lease(tmp_path), Lease)
    assert [path.name for path in tmp_path.iterdir()] == ["owner.json"]


def test_a_mutex_that_is_never_given_back_is_an_error(tmp_path, monkeypatch):
    (tmp_path / ".owner.lock").touch()
    monkeypatch.setattr(lease, "_MUTEX_SECONDS", 0.1)
    ahead = time.time() + 1000
    os.utime(tmp_path / ".owner.lock", (ahead, ahead))
    with pytest.raises(StorageError, match="held by a process that does not release it"):
        take_lease(tmp_path)


def test_a_token_is_needed():
    from pathlib import Path

    assert not holds_lease(Path("/nowhere"), None)


def test_a_file_server_that_fails_for_a_moment_costs_no_lease(tmp_path, now, monkeypatch):
    mine = take_lease(tmp_path)

    def stale(*_arguments, **_more):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    now[0] += 11
    with monkeypatch.context() as broken:
        for name in ("read_text", "stat"):
            broken.setattr(lease.Path, name, stale)
        broken.setattr(lease.os, "utime", stale)
        mine.renew()
    (tmp_path / "owner.json").unlink()
    now[0] += 11
    with pytest.raises(RunDirectoryBusy, match="a process that has ended since"):
        mine.renew()
