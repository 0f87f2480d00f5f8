"""Where the time of a run went: hand-made ledgers whose answer is plain."""

import pytest

from distllm.observe.goodput import CATEGORIES, LastStep, account
from distllm.observe.ledger import Event


def ledger(*lines):
    """Events from ``(time, attempt, kind, fields)``."""
    return [Event(float(when), attempt, kind, dict(*fields)) for when, attempt, kind, *fields in lines]


def progress(when, attempt, first, step, **seconds):
    return (when, attempt, "progress", {"first": first, "step": step, "seconds": seconds})


def split(found):
    return {name: round(value, 6) for name, value in found.seconds.items() if value}


def test_a_run_without_faults():
    found = account(
        ledger(
            (100, 1, "attempt"),
            (103, 1, "resumed", {"step": 0}),
            progress(115, 1, 0, 10, productive=8, data=1, overhead=0.5, eval=2),
            progress(127, 1, 10, 20, productive=10, checkpoint=1.5),
            (127, 1, "done", {"step": 20}),
        )
    )
    assert split(found) == {
        "productive": 18,
        "data": 1,
        "overhead": 1,
        "eval": 2,
        "checkpoint": 1.5,
        "restart": 3.5,
    }
    assert (found.wall, found.step, found.attempts, found.lost_steps) == (27, 20, 1, 0)
    assert found.goodput == pytest.approx(18 / 27)
    assert found.ettr == pytest.approx(22 / 27)
    assert (found.failures, found.mttf_seconds, found.restarts) == (0, None, {})


KILLED = (
    (0, 1, "attempt"),
    (0, 1, "resumed", {"step": 0}),
    progress(10, 1, 0, 10, productive=10),
    (10, 1, "saved", {"step": 10}),
    progress(14, 1, 10, 14, productive=4),
)


def test_steps_after_the_last_checkpoint_are_rework():
    found = account(
        ledger(
            *KILLED,
            (15, 1, "killed", {"rank": 1, "signal": "SIGKILL"}),
            (18, 2, "attempt"),
            (20, 2, "resumed", {"step": 10}),
            progress(30, 2, 10, 20, productive=10),
            (30, 2, "done"),
        )
    )
    assert split(found) == {"productive": 20, "rework": 4, "restart": 6}
    assert found.lost_steps == 4
    assert (found.restarts, found.failures) == ({"killed by SIGKILL": 1}, 1)
    assert found.mttf_seconds == 30


def test_steps_that_only_the_metrics_know_are_rework_too():
    events = ledger(
        *KILLED, (21, 2, "attempt"), (21, 2, "resumed", {"step": 10}), progress(31, 2, 10, 20, productive=10)
    )
    found = account(events, {1: LastStep(17, 17.5)})
    assert found.lost_steps == 7
    assert split(found) == {"productive": 20, "rework": 7, "restart": 4}
    assert found.restarts == {"unknown cause": 1}
    late = account(events, {1: LastStep(90, 20.0)})
    assert split(late) == {"productive": 20, "rework": 11}, "no more than the time there was"


def test_a_step_logged_before_the_last_rewind_is_not_taken_for_one_after_it():
    events = ledger(
        *KILLED, (14.5, 1, "rewind", {"to": 10}), (20, 2, "attempt"), (20, 2, "resumed", {"step": 10})
    )
    assert account(events, {1: LastStep(14, 13.9)}).lost_steps == 4
    assert account(events, {1: LastStep(12, 16.0)}).lost_steps == 4 + 2


def test_a_stretch_that_was_saved_in_its_middle_is_divided():
    found = account(
        ledger((0, 1, "attempt"), progress(10, 1, 0, 10, productive=10), (10, 1, "rewind", {"to": 4}))
    )
    assert split(found) == {"productive": 4, "rework": 6}
    assert (found.step, found.lost_steps) == (4, 6)


def test_an_attempt_that_says_nothing_but_goes_on_earlier_has_gone_back():
    found = account(ledger(*KILLED, (15, 2, "attempt"), progress(18, 2, 10, 13, productive=3)))
    assert (found.step, found.lost_steps) == (13, 4)
    assert split(found) == {"productive": 13, "rework": 4, "restart": 1}


def test_a_hang_is_the_time_since_the_last_sign_of_life():
    found = account(
        ledger(
            *KILLED,
            (44, 1, "hang", {"seconds": 25}),
            (45, 1, "killed", {"signal": "SIGKILL"}),
            (50, 2, "attempt"),
            progress(55, 2, 10, 14, productive=4),
        ),
        {1: LastStep(17, 17.0)},
    )
    assert split(found) == {"productive": 14, "rework": 7, "hang": 25, "restart": 9}
    assert found.restarts == {"hang": 1}


def test_a_hang_that_does_not_say_since_when_takes_all_the_silence():
    assert split(account(ledger(*KILLED, (44, 1, "hang"))))["hang"] == 30


@pytest.mark.parametrize(
    ("gap", "said", "ending", "category"),
    [
        (60, (), "stopped", "restart"),
        (6000, (), "stopped", "idle"),
        (6000, ("restart",), "stopped", "restart"),
        (6000, ("killed",), None, "restart"),
        (6000, (), None, "idle"),
        (60, (), "done", "idle"),
    ],
)
def test_a_gap_is_a_restart_if_it_is_short_or_explained_and_there_was_more_to_do(gap, said, ending, category):
    events = ledger(
        *KILLED,
        *([(14, 1, ending)] if ending else []),
        *[(14, 1, kind) for kind in said],
        (14 + gap, 2, "attempt"),
        progress(14 + gap, 2, 14, 14),
    )
    assert split(account(events)) == {"productive": 14, category: gap}


@pytest.mark.parametrize(
    ("endings", "cause", "failures"),
    [
        ([("stopped", {})], "stopped", 0),
        ([("done", {})], "completed", 0),
        ([("failed", {"error": "StorageError"})], "StorageError", 1),
        ([("failed", {"error": "LaunchError"}), ("killed", {"signal": "SIGKILL"})], "killed by SIGKILL", 1),
        ([("hang", {}), ("killed", {"signal": "SIGKILL"}), ("failed", {"error": "LaunchError"})], "hang", 1),
        ([("oom", {}), ("killed", {"signal": "SIGTERM"})], "out of memory", 1),
        ([("killed", {}), ("failed", {"error": "LaunchError"})], "killed by a signal", 1),
        ([], "unknown cause", 1),
    ],
)
def test_what_ended_an_attempt(endings, cause, failures):
    events = ledger(*KILLED, *[(15, 1, kind, fields) for kind, fields in endings])
    assert account(events).failures == (failures if endings else 0), "without a word it may still be running"
    found = account([*events, *ledger((20, 2, "attempt"))])
    assert (found.restarts, found.failures) == ({cause: 1}, failures)


def test_a_clock_that_went_back_takes_nothing_away():
    events = ledger(
        *KILLED,
        (-3600, 2, "attempt"),
        (-3600, 2, "resumed", {"step": 14}),
        progress(-3590, 2, 14, 24, productive=10),
    )
    assert split(account(events)) == {"productive": 24}


@pytest.mark.parametrize("hour", [3600, -3600])
def test_a_clock_that_jumps_and_comes_back_is_no_hour(hour):
    events = ledger(
        *KILLED,
        progress(18 + hour, 1, 14, 18, productive=4),
        progress(22 + hour, 1, 18, 22, productive=4),
        (23, 1, "killed", {"rank": 1, "signal": "SIGKILL"}),
        (30, 2, "attempt"),
        (31, 2, "resumed", {"step": 22}),
        progress(35, 2, 22, 26, productive=4),
    )
    expected = {"productive": 26, "restart": 9} if hour < 0 else {"productive": 26, "overhead": 3600}
    assert split(account(events)) == expected


def test_what_a_rank_measured_counts_even_if_the_clock_stood_still():
    assert split(account(ledger((0, 1, "attempt"), progress(0, 1, 0, 5, productive=5)))) == {"productive": 5}


def test_an_empty_ledger_has_no_time():
    found = account([])
    assert set(found.seconds) == set(CATEGORIES)
    assert (found.wall, found.goodput, found.ettr, found.mttf_seconds) == (0, 0, 0, None)
