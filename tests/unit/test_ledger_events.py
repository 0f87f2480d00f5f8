"""Events are appended whole by several writers, and losing the ledger costs no run."""

import json
import subprocess
import sys
import threading

import pytest

from distllm.errors import DataError
from distllm.observe.ledger import KINDS, Event, Ledger, read_events


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def kinds(path):
    return [event.kind for event in read_events(path)]


def test_events_come_back_in_order_with_time_and_attempt(path):
    first = Ledger(path, 1)
    first.event("attempt", host="a", pid=3, world_size=2)
    first.event("skipped", loss=float("nan"), samples=[16, 32])
    Ledger(path, 2).event("attempt", host="b")
    began, skipped, again = read_events(path)
    assert (began.kind, began.attempt, began.fields) == (
        "attempt",
        1,
        {"host": "a", "pid": 3, "world_size": 2},
    )
    assert skipped.fields == {"loss": "nan", "samples": [16, 32]}
    assert again.attempt == 2
    assert 1.6e9 < began.time <= skipped.time <= again.time


def test_every_line_is_one_strict_json_object(path):
    Ledger(path, 1).event("skipped", loss=float("inf"), why="a\nb", grad_norm=-float("inf"))

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    (line,) = path.read_text().splitlines()
    values = json.loads(line, parse_constant=refuse)
    assert (values["loss"], values["grad_norm"], values["why"]) == ("inf", "-inf", "a\nb")


def test_an_unknown_kind_and_a_taken_name_are_refused(path):
    with pytest.raises(ValueError, match="'finished' is not a kind of event"):
        Ledger(path, 1).event("finished")
    for name in ("time", "attempt"):
        with pytest.raises(ValueError, match=f"{name} cannot be given"):
            Ledger(path, 1).event("done", **{name: 1})
    assert not path.exists()


@pytest.mark.parametrize("kept", [1, 15, 40])
def test_half_a_line_is_dropped_and_the_next_event_stands_on_its_own(path, kept):
    ledger = Ledger(path, 1)
    ledger.event("attempt", host="a")
    with path.open("ab") as stream:
        stream.write(b'{"time": 1.0, "attempt": 1, "kind": "saved", "step": 4}'[:kept])
    assert kinds(path) == ["attempt"]
    before = path.read_bytes()
    ledger.event("done", step=8)
    assert kinds(path) == ["attempt", "done"]
    assert path.read_bytes().startswith(before), "nothing is ever rewritten"


def test_a_whole_line_without_its_end_is_not_lost_when_another_writer_goes_on(path):
    path.write_text('{"time": 1.0, "attempt": 1, "kind": "saved", "step": 4}')
    assert kinds(path) == []
    Ledger(path, 1).event("done")
    assert kinds(path) == ["saved", "done"]


def test_writers_of_the_same_file_lose_nothing(path):
    def write(attempt):
        ledger = Ledger(path, attempt)
        for step in range(200):
            ledger.event("saved", step=step, padding="x" * (step % 50))

    threads = [threading.Thread(target=write, args=[attempt]) for attempt in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = read_events(path)
    for attempt in range(1, 5):
        assert [e.fields["step"] for e in events if e.attempt == attempt] == list(range(200))


def test_a_full_disk_is_told_once_and_stops_nothing(path):
    path.symlink_to("/dev/full")
    told = []
    ledger = Ledger(path, 1, told.append)
    for _ in range(3):
        ledger.event("saved", step=1)
    assert len(told) == 1
    assert "ledger cannot be written" in told[0]
    assert "training continues without it" in told[0]


def test_without_a_listener_the_loss_is_logged(path, caplog):
    path.mkdir()
    Ledger(path, 1).event("saved", step=1)
    assert "ledger cannot be written" in caplog.text


def test_what_is_written_after_the_disk_has_room_again_is_kept(path):
    path.symlink_to("/dev/full")
    ledger = Ledger(path, 1, lambda text: None)
    ledger.event("saved", step=1)
    path.unlink()
    ledger.event("saved", step=2)
    assert [event.fields for event in read_events(path)] == [{"step": 2}]


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[1]",
        '{"kind": "saved"}',
        '{"time": 1, "attempt": 1, "kind": "other"}',
        '{"time": "1", "attempt": 1, "kind": "saved"}',
        '{"time": 1, "attempt": "1", "kind": "saved"}',
    ],
)
def test_a_line_that_is_no_event_is_an_error_that_names_it(path, line):
    Ledger(path, 1).event("attempt")
    with path.open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(DataError, match=r"line 2 of .*ledger\.jsonl is not an event"):
        read_events(path)


def test_a_missing_ledger_is_an_error_with_a_remedy(path):
    with pytest.raises(DataError, match="does not exist") as caught:
        read_events(path)
    assert "distllm train" in str(caught.value)


def test_a_number_that_is_missing_or_none_has_its_default():
    event = Event(1.0, 1, "hang", {"seconds": 12, "rank": True, "loss": "nan", "rate": float("inf")})
    assert event.number("seconds") == 12.0
    assert [event.number(name, 7.0) for name in ("rank", "loss", "rate", "other")] == [7.0] * 4


def test_the_ledger_can_be_written_without_torch():
    code = "import sys, distllm.observe.ledger; print('torch' in sys.modules, 'wandb' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout.split() == ["False", "False"]
    assert {"attempt", "hang", "killed", "restart", "done"} <= KINDS
