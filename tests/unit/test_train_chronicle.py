"""What rank 0 tells the ledger: each second once, in few lines, and never on other ranks."""

from contextlib import suppress

import pytest

from distllm.observe.goodput import account
from distllm.observe.ledger import Ledger, read_events
from distllm.train.chronicle import PROGRESS_SECONDS, Chronicle
from distllm.train.clock import Phases

PHASES = Phases(data=0.1, compute=0.5, update=0.25, loop=0.15)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def chronicle(tmp_path, clock):
    begun = Chronicle(clock)
    begun.begin(Ledger(tmp_path / "ledger.jsonl", 1), world_size=2)
    begun.resumed(0)
    return begun


def lines(tmp_path, kind="progress"):
    return [event.fields for event in read_events(tmp_path / "ledger.jsonl") if event.kind == kind]


def take(chronicle, clock, steps, **more):
    for step in steps:
        clock.now += PHASES.total
        chronicle.count_step(step, PHASES, **more)


def test_steps_are_reported_together_every_few_seconds(tmp_path, chronicle, clock):
    take(chronicle, clock, range(1, 13))
    first, second = lines(tmp_path)
    assert (first["first"], first["step"]) == (0, PROGRESS_SECONDS)
    assert (second["first"], second["step"]) == (PROGRESS_SECONDS, 2 * PROGRESS_SECONDS)
    assert first["seconds"] == pytest.approx({"productive": 3.75, "data": 0.5, "overhead": 0.75})


def test_an_event_comes_after_the_time_that_led_to_it(tmp_path, chronicle, clock):
    take(chronicle, clock, [1, 2])
    chronicle.event("saved", step=2)
    chronicle.event("oom", step=2)
    assert [event.kind for event in read_events(tmp_path / "ledger.jsonl")] == [
        "attempt", "resumed", "progress", "saved", "oom",
    ]  # fmt: skip
    take(chronicle, clock, [3])
    chronicle.end("done", step=3)
    assert [(line["first"], line["step"]) for line in lines(tmp_path)] == [(0, 2), (2, 3)]


def test_a_wasted_step_is_rework(tmp_path, chronicle, clock):
    take(chronicle, clock, [1], wasted=True)
    chronicle.event("skipped", step=1)
    assert lines(tmp_path)[0]["seconds"] == pytest.approx({"rework": 0.75, "data": 0.1, "overhead": 0.15})


def test_a_block_is_charged_without_what_is_charged_within_it(tmp_path, chronicle, clock):
    with chronicle.charging("restart"):
        clock.now += 1
        with chronicle.charging("checkpoint"):
            clock.now += 4
        clock.now += 2
        with suppress(OSError), chronicle.charging("eval"):
            clock.now += 8
            raise OSError
    chronicle.event("saved")
    assert lines(tmp_path)[0]["seconds"] == pytest.approx({"restart": 3, "checkpoint": 4, "eval": 8})


def test_going_back_undoes_the_steps_and_the_next_are_counted_from_there(tmp_path, chronicle, clock):
    take(chronicle, clock, [1, 2, 3])
    chronicle.rewound(1, why="a streak", excluded=[16, 48])
    take(chronicle, clock, [2])
    chronicle.event("saved", step=2)
    assert lines(tmp_path, "rewind") == [{"step": 3, "to": 1, "why": "a streak", "excluded": [16, 48]}]
    assert [(line["first"], line["step"]) for line in lines(tmp_path)] == [(0, 3), (1, 2)]
    found = account(read_events(tmp_path / "ledger.jsonl"))
    assert (found.step, found.lost_steps) == (2, 2)
    assert found.seconds["rework"] == pytest.approx(1.5)


def test_an_attempt_ends_once(tmp_path, chronicle):
    chronicle.end("stopped", step=4, why="asked to stop")
    chronicle.end("failed", error="Interrupted", cause="asked to stop")
    assert lines(tmp_path, "failed") == []
    assert lines(tmp_path, "stopped") == [{"step": 4, "why": "asked to stop"}]


def test_other_ranks_tell_nothing(clock):
    silent = Chronicle(clock)
    silent.resumed(3)
    take(silent, clock, range(4, 20))
    silent.rewound(3)
    silent.end("done")
