"""When a run stands still, and whom the sentence about it names."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from distllm import heartbeat
from distllm.cluster.hang import Patience, explain_hang, find_hang, keep_evidence, last_collectives
from distllm.cluster.local import is_stopped
from distllm.heartbeat import Beat, Heartbeat, beat_path, read_beat

PATIENCE = Patience(floor=10.0, long=600.0)


def beat(rank, **more):
    known = {
        "host": f"n{rank}",
        "phase": "compute",
        "step": 6,
        "collectives": 40,
        "steps_here": 9,
        "moved": 100.0,
    }
    return Beat(rank, **(known | more))


def waiting(rank, what="gathering numbers", **more):
    return beat(rank, phase="update", waits=what, collectives=41, **more)


@pytest.mark.parametrize(
    ("beats", "limit"),
    [
        ([beat(0), beat(1)], 10.0),
        ([beat(0, p99_seconds=2.0), beat(1, p99_seconds=5.0)], 15.0),
        ([beat(0), beat(1, phase="save")], 600.0),
        ([beat(0, phase="evaluate")], 600.0),
        ([beat(0), beat(1, steps_here=0)], 600.0),
    ],
)
def test_patience_follows_the_steps_and_the_phase(beats, limit):
    assert PATIENCE.limit(beats) == limit
    assert find_hang(beats, PATIENCE, 100.0 + limit) is None
    assert find_hang(beats, PATIENCE, 100.1 + limit) == pytest.approx(limit + 0.1)


def test_one_rank_that_moves_is_enough():
    assert find_hang([beat(0, moved=0.0), beat(1, moved=995.0)], PATIENCE, 1000.0) is None


def test_a_stopped_rank_is_named():
    hang = explain_hang([waiting(0), beat(1)], 11.0, stopped=[1])
    assert hang.ranks == (1,)
    assert hang.sentence == (
        "rank 1 on n1 is stopped (SIGSTOP) in compute of step 7; "
        "rank 0 waits in 'gathering numbers' for 11.0 s"
    )


def test_a_rank_that_does_not_arrive_is_named_with_what_it_has_open():
    hang = explain_hang([waiting(0), beat(1, phase="data", shard="web/7.tar"), waiting(2)], 12.5, [])
    assert hang.ranks == (1,)
    assert hang.sentence == (
        "rank 1 on n1 hangs in data of step 7 (opened last: web/7.tar); "
        "rank 0 and rank 2 wait in 'gathering numbers' for 12.5 s"
    )
    facts = hang.facts()
    assert (facts["seconds"], facts["hosts"], facts["phase"]) == (12.5, ["n1"], "data")
    assert (facts["collective"], facts["shard"], facts["step"]) == ("gathering numbers", "web/7.tar", 6)


def test_a_rank_that_left_an_exchange_out_is_ahead():
    skipped = beat(1, phase="data", step=7, waits="summing numbers", collectives=41)
    hang = explain_hang([waiting(0), skipped], 10.0, [])
    assert hang.ranks == (1,)
    assert hang.sentence.startswith("rank 1 on n1 skipped a collective: they wait for 10.0 s")
    assert "rank 0 in 'gathering numbers' in update of step 7" in hang.sentence
    assert "rank 1 in 'summing numbers' in data of step 8" in hang.sentence


def test_where_all_wait_alike_it_is_the_connection():
    hang = explain_hang([waiting(0), waiting(1)], 10.0, [])
    assert hang.ranks == ()
    assert "the network between them is broken" in hang.sentence


def test_a_process_that_is_stopped_is_seen():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 20
        while not is_stopped(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        stopped = is_stopped(process.pid)
        process.kill()
    assert stopped
    assert not is_stopped(os.getpid())
    assert not is_stopped(process.pid)


def test_beats_tell_what_a_rank_does(tmp_path, monkeypatch):
    clock = [50.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock[0])
    heart = Heartbeat()
    heart.phase("data")  # silent: not open
    assert read_beat(tmp_path, 3) is None
    heart.open(tmp_path, 3)
    assert read_beat(tmp_path, 3).phase == "start"
    clock[0] = 51.0
    heart.phase("compute", 8)
    with heart.waiting("summing numbers"):
        seen = read_beat(tmp_path, 3)
        assert (seen.rank, seen.step, seen.phase, seen.waits) == (3, 8, "compute", "summing numbers")
        assert (seen.collectives, seen.moved, seen.pid) == (1, 51.0, os.getpid())
    assert read_beat(tmp_path, 3).waits == ""
    size = beat_path(tmp_path, 3).stat().st_size
    heart.count_step(0.25)
    assert (read_beat(tmp_path, 3).steps_here, read_beat(tmp_path, 3).p99_seconds) == (1, 0.25)
    assert beat_path(tmp_path, 3).stat().st_size == size
    heart.close()
    heart.phase("data")
    assert read_beat(tmp_path, 3).phase == "compute"


def test_opening_a_shard_is_a_move_only_for_a_rank_that_waits_for_it(tmp_path, monkeypatch):
    clock = [50.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock[0])
    heart = Heartbeat()
    heart.open(tmp_path, 0)
    heart.phase("compute")
    clock[0] = 60.0
    heart.reading(tmp_path / "train" / "1.tar")
    assert read_beat(tmp_path, 0).moved == 50.0
    assert read_beat(tmp_path, 0).shard.endswith("train/1.tar")
    heart.phase("data")
    clock[0] = 70.0
    heart.reading(tmp_path / "train" / "2.tar")
    assert read_beat(tmp_path, 0).moved == 70.0


def test_every_piece_of_a_slow_shard_is_a_move(tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    from distllm.data import remote

    fsspec.filesystem("memory").pipe("/shards/1.tar", bytes(40 << 20))
    seen = []
    monkeypatch.setattr(remote.HEARTBEAT, "reading", seen.append)
    remote.fetch("memory://shards/1.tar", tmp_path / "1.tar", 5.0)
    assert len(seen) > 2
    assert set(seen) == {tmp_path / "1.tar"}


def test_evidence_is_kept_per_attempt_although_nobody_answers(tmp_path, monkeypatch):
    from distllm.cluster import hang

    monkeypatch.setattr(hang, "_DUMP_SECONDS", 0.1)
    heart = Heartbeat()
    heart.open(tmp_path, 0)
    heart.close()
    record = {"entries": [{"profiling_name": "gloo:all_reduce", "collective_seq_id": 9}]}
    hang.collectives_path(tmp_path / "beats", 0).write_text(json.dumps(record))
    hang.collectives_path(tmp_path / "beats", 1).write_text("{")
    kept = keep_evidence(tmp_path, 7, {0: 2**22 + 1})
    assert kept == tmp_path / "hangs" / "attempt-0007"
    assert (kept / "rank-00000.json").exists()
    assert last_collectives(kept, [0, 1, 2]) == {0: "gloo:all_reduce #9"}


def test_a_beat_that_cannot_be_written_ends_nothing(tmp_path, monkeypatch):
    heart = Heartbeat()
    heart.open(tmp_path, 0)

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(heartbeat.os, "pwrite", full)
    heart.phase("compute", 8)
    monkeypatch.undo()
    heart.phase("update")
    assert (read_beat(tmp_path, 0).phase, read_beat(tmp_path, 0).step) == ("update", 8)
    heart.close()


def test_nothing_is_written_to_a_descriptor_that_is_closed_meanwhile(tmp_path, monkeypatch):
    """It may be another file's by then: closing waits for a thread that writes."""
    heart = Heartbeat()
    heart.open(tmp_path, 0)
    writing, write = threading.Event(), os.pwrite

    def slow(descriptor, content, offset):
        writing.set()
        time.sleep(0.2)
        os.fstat(descriptor)
        return write(descriptor, content, offset)

    monkeypatch.setattr(heartbeat.os, "pwrite", slow)
    reader = threading.Thread(target=heart.reading, args=(tmp_path / "7.tar",))
    reader.start()
    writing.wait()
    heart.close()
    reader.join()
    assert read_beat(tmp_path, 0).shard.endswith("7.tar")
