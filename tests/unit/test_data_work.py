import fcntl
import json
import multiprocessing
import os
import signal
import time

import pytest

from distllm.data.pipeline import work as work_module
from distllm.data.pipeline.work import FACTS_FILE, Claim, Task, WorkDirectory, address, claim
from distllm.errors import StorageError

FORK = multiprocessing.get_context("fork")


def directory_of(path, reports=None):
    return WorkDirectory(path, (reports if reports is not None else []).append)


def task(key, log, *, size=10, text="made"):
    def perform(directory, tick):
        tick(size // 2)
        with log.open("a") as stream:
            stream.write(f"{key}\n")
        (directory / "out.txt").write_text(text)
        return {"key": key}

    return Task(key, size, perform)


def test_every_task_is_done_once_and_results_come_in_order(tmp_path):
    log = tmp_path / "log"
    tasks = [task(name, log) for name in "cab"]
    first = directory_of(tmp_path / "work").run("read", tasks)
    again = directory_of(tmp_path / "work").run("read", tasks)
    assert [result.facts["key"] for result in first] == ["c", "a", "b"]
    assert [(r.key, r.directory) for r in again] == [(r.key, r.directory) for r in first]
    assert log.read_text() == "c\na\nb\n"
    assert (first[0].directory / "out.txt").read_text() == "made"
    assert json.loads((first[0].directory / FACTS_FILE).read_text())["facts"] == {"key": "c"}
    assert first[0].digest == first[1].digest == first[2].digest
    assert sorted(path.name for path in (tmp_path / "work" / "read").iterdir()) == ["a", "b", "c"]


def test_the_digest_tells_what_was_written_but_not_what_was_logged(tmp_path):
    def writer(text, name):
        def perform(directory, tick):
            (directory / name).write_text(text)
            return {"text": text}

        return perform

    work = directory_of(tmp_path / "work")
    asked = [
        ("x", "a.txt"),
        ("x", "a.txt"),
        ("y", "a.txt"),
        ("x", "b.txt"),
        ("x", "log.jsonl"),
        ("y", "log.jsonl"),
    ]
    results = work.run("s", [Task(str(i), 1, writer(*each)) for i, each in enumerate(asked)])
    same, again, other_text, other_name, log, other_log = [result.digest for result in results]
    assert same == again
    assert log == other_log
    assert len({same, other_text, other_name, log}) == 4


def test_only_new_keys_are_performed(tmp_path):
    log = tmp_path / "log"
    directory_of(tmp_path / "work").run("read", [task("a", log), task("b", log)])
    reports = []
    directory_of(tmp_path / "work", reports).run("read", [task("a", log), task("b2", log)])
    assert log.read_text() == "a\nb\nb2\n"
    assert reports[-1].note == "2/2 parts, 1 reused"
    assert (reports[-1].done, reports[-1].total, reports[-1].unit) == (20, 20, "bytes")


def test_a_task_that_fails_leaves_nothing_and_can_be_tried_again(tmp_path):
    def fail(directory, tick):
        (directory / "half").write_text("x")
        raise RuntimeError("broken")

    work = directory_of(tmp_path / "work")
    with pytest.raises(RuntimeError, match="broken"):
        work.run("read", [Task("a", 1, fail)])
    assert list((tmp_path / "work" / "read").glob("a*")) in ([], [tmp_path / "work" / "read" / "a.lock"])
    assert work.run("read", [task("a", tmp_path / "log")])[0].facts == {"key": "a"}


def test_what_a_killed_process_left_is_cleared_and_done_again(tmp_path):
    def hang(directory, tick):
        (directory / "half").write_text("x")
        (tmp_path / "started").touch()
        time.sleep(60)

    child = FORK.Process(target=lambda: directory_of(tmp_path / "work").run("read", [Task("a", 1, hang)]))
    child.start()
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    home = tmp_path / "work" / "read"
    assert not (home / "a").exists()
    assert any(home.glob("a.partial-*"))
    result = directory_of(tmp_path / "work").run("read", [task("a", tmp_path / "log")])[0]
    assert sorted(path.name for path in result.directory.iterdir()) == [FACTS_FILE, "out.txt"]
    assert sorted(path.name for path in home.iterdir()) == ["a"]


def test_processes_share_the_tasks(tmp_path):
    log = tmp_path / "log"

    def slow(key):
        def perform(directory, tick):
            time.sleep(0.02)
            return task(key, log).perform(directory, tick)

        return Task(key, 1, perform)

    tasks = [slow(f"{i:02d}") for i in range(12)]

    def assist():
        directory_of(tmp_path / "work").run("read", tasks)

    children = [FORK.Process(target=assist) for _ in range(3)]
    for child in children:
        child.start()
    results = directory_of(tmp_path / "work").run("read", tasks)
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert sorted(log.read_text().split()) == [each.key for each in tasks]
    assert [result.key for result in results] == [each.key for each in tasks]


def test_a_claim_excludes_others_and_ends_with_the_block(tmp_path):
    path = tmp_path / "x.lock"
    with claim(path) as first:
        with claim(path) as second:
            assert (first, second) == (Claim.MINE, Claim.TAKEN)
        assert path.exists()
    assert not path.exists()
    with claim(path) as whose:
        assert whose is Claim.MINE


def test_without_locks_two_processes_do_the_same_and_one_result_stays(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(work_module.errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    work = directory_of(tmp_path / "work")

    def perform(directory, tick):
        rival = task("a", tmp_path / "log", text="rival")
        if not (tmp_path / "log").exists():
            work._attempt(directory.parent, rival, work_module._Board("read", directory.parent, [], print))
        (directory / "out.txt").write_text("late")
        return {}

    result = work.run("read", [Task("a", 1, perform)])[0]
    assert (result.directory / "out.txt").read_text() == "rival"
    assert not list(result.directory.parent.glob("*.partial-*"))


def test_results_that_are_no_longer_wanted_are_not_made(tmp_path):
    log = tmp_path / "log"
    assert directory_of(tmp_path / "work").run("shards", [task("a", log)], lambda: True) == []
    assert not log.exists()


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(work_module.errno.ENOSPC, "full")

    monkeypatch.setattr(work_module, "_commit", full)
    with pytest.raises(StorageError, match="no space left"):
        directory_of(tmp_path / "work").run("read", [task("a", tmp_path / "log")])
    assert not list((tmp_path / "work" / "read").glob("a*partial*"))


def test_an_address_tells_ingredients_and_their_order_apart():
    keys = {
        address("read", 1),
        address("read", 2),
        address("read", "1"),
        address(1, "read"),
        address("read", [1]),
    }
    assert len(keys) == 5
    assert address({"a": 1, "b": 2}) == address({"b": 2, "a": 1})
    assert address("\udcff") != address("\udcfe")
