"""Decisions of rank 0 that take their time."""

import time

import pytest

from distllm.dist import agree as module
from distllm.dist.agree import agree_after_work, agree_when_done
from distllm.dist.topology import Topology
from distllm.errors import StorageError

SINGLE = Topology.single()


def test_it_waits_in_small_parts_until_the_work_is_done(monkeypatch):
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    waited = []

    def wait(seconds):
        waited.append(seconds)
        return len(waited) == 3

    assert agree_when_done(SINGLE, wait, lambda: "answer") == "answer"
    assert waited == [0.01] * 3


def test_what_work_returns_or_raises_reaches_everybody(monkeypatch):
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    assert agree_after_work(SINGLE, lambda: time.sleep(0.05) or [1, "two"]) == [1, "two"]

    def fail():
        raise StorageError("full", where="there", remedy="make room")

    with pytest.raises(StorageError, match="full") as caught:
        agree_after_work(SINGLE, fail)
    assert caught.value.everywhere
    assert caught.value.remedy == "make room"
