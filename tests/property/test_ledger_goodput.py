"""Whatever a ledger says, in whatever order: no second is lost and none is counted twice."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distllm.observe.goodput import CATEGORIES, LastStep, account
from distllm.observe.ledger import KINDS, Event

numbers = st.one_of(st.none(), st.text(max_size=2), st.floats(), st.integers(-5, 60))
seconds = st.dictionaries(st.sampled_from([*CATEGORIES, "other"]), st.one_of(st.floats(0, 50), numbers))
fields = st.fixed_dictionaries(
    {},
    optional={
        "first": numbers,
        "step": numbers,
        "to": numbers,
        "seconds": st.one_of(seconds, numbers),
        "signal": st.text(max_size=3),
        "error": st.text(max_size=3),
    },
)
anything = st.builds(
    Event,
    time=st.floats(-1e9, 1e10),
    attempt=st.integers(0, 5),
    kind=st.sampled_from(sorted(KINDS)),
    fields=fields,
)
known = st.dictionaries(
    st.integers(0, 5), st.builds(LastStep, step=st.integers(0, 80), time=st.floats(0, 1e10))
)


@given(st.lists(anything, max_size=30), known)
@settings(max_examples=150, deadline=None)
def test_any_sequence_of_events_sums_to_its_wall(events, last_steps):
    found = account(events, last_steps)
    assert set(found.seconds) == set(CATEGORIES)
    assert all(value >= -1e-6 for value in found.seconds.values())
    # To the latest time that was read: a jump back and its undoing are no time.
    passed = max((event.time for event in events), default=0.0) - (events[0].time if events else 0.0)
    measured = sum(
        value
        for event in events
        if event.kind == "progress" and isinstance(event.fields.get("seconds"), dict)
        for name, value in event.fields["seconds"].items()
        if name in CATEGORIES and isinstance(value, int | float) and 0 < value < math.inf
    )
    assert found.wall >= passed - 1e-5
    assert found.wall <= passed + measured + 1e-5
    assert found.lost_steps >= 0
    assert -1e-9 <= found.goodput <= 1 + 1e-9
    assert -1e-9 <= found.ettr <= 1 + 1e-9
    assert sum(found.restarts.values()) == max(0, found.attempts - 1)


@st.composite
def runs(draw):
    """A run as it happens: what each second was is known, and what its rank could report of it."""
    clock, step, saved, events = 1e9, 0, 0, []
    truth = dict.fromkeys(CATEGORIES, 0.0)
    steps_of, last_steps, lost = {}, {}, 0

    def say(kind, **fields):
        events.append(Event(clock, attempt, kind, fields))

    def spend(category, duration):
        nonlocal clock
        truth[category] += duration
        clock += duration

    for attempt in range(1, draw(st.integers(1, 4)) + 1):
        say("attempt")
        spend("restart", draw(st.floats(0, 30)))
        lost += step - saved
        for undone in range(saved + 1, step + 1):
            truth["rework"] += steps_of[undone]
            truth["productive"] -= steps_of[undone]
        step = saved
        say("resumed", step=step)
        # All steps of an attempt take equally long, so that the estimate of its last ones is exact.
        step_seconds = draw(st.floats(0.1, 3))
        spent, first = dict.fromkeys(CATEGORIES, 0.0), step
        reported = False
        for action in draw(st.lists(st.sampled_from(["step", "report", "save", "eval"]), max_size=25)):
            if action == "step":
                step += 1
                spend("productive", step_seconds)
                spent["productive"] += step_seconds
                steps_of[step] = step_seconds
                last_steps[attempt] = LastStep(step, clock)
            elif action == "eval":
                spend("eval", 0.5)
                spent["eval"] += 0.5
            else:
                say("progress", first=first, step=step, seconds=spent)
                spent, first, reported = dict.fromkeys(CATEGORIES, 0.0), step, reported or step > first
                if action == "save":
                    saved = step
                    say("saved", step=step)
        ending = draw(st.sampled_from(["killed", "hang", "stopped"]))
        if ending == "stopped" or not reported or spent["eval"]:
            say("progress", first=first, step=step, seconds=spent)
        if ending == "stopped":
            saved = step
            say("saved", step=step)
            say("stopped", step=step)
        elif ending == "hang":
            silence = draw(st.floats(1, 60))
            spend("hang", silence)
            say("hang", seconds=silence)
        else:
            say("killed", signal="SIGKILL")
        spend("restart", draw(st.floats(0, 60)))
    attempt += 1
    say("attempt")
    spend("restart", 1.0)
    say("resumed", step=saved)
    lost += step - saved
    for undone in range(saved + 1, step + 1):
        truth["rework"] += steps_of[undone]
        truth["productive"] -= steps_of[undone]
    say("progress", first=saved, step=saved, seconds={})
    return events, last_steps, truth, lost


@given(runs())
@settings(max_examples=300, deadline=None)
def test_a_run_is_accounted_for_as_it_happened(run):
    events, last_steps, truth, lost = run
    found = account(events, last_steps)
    assert found.lost_steps == lost
    assert found.wall == pytest.approx(events[-1].time - events[0].time, abs=1e-3)
    assert found.seconds == pytest.approx(truth, abs=1e-3)
