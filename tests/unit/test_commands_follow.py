"""Following a run: each checkpoint once, in order, and no end because one was removed meanwhile."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from distllm.checkpoint import format as checkpoint_format
from distllm.cluster import outcome
from distllm.commands import evaluate
from distllm.errors import CheckpointError

STORED = SimpleNamespace(directory=SimpleNamespace(path=Path("run"), checkpoints=Path("run/checkpoints")))


def follow(monkeypatch, kept, measure, *, last=4, done=lambda: False):
    monkeypatch.setattr(
        checkpoint_format, "list_checkpoints", lambda _: [Path(f"step-{n:09d}") for n in kept]
    )
    monkeypatch.setattr(outcome, "is_done", lambda _: done())
    monkeypatch.setattr(evaluate.time, "sleep", lambda _: kept.append(max(kept) + 1))
    monkeypatch.setattr(evaluate, "_measure", lambda stored, resolved, options, step: measure(step))
    evaluate._follow(STORED, SimpleNamespace(max_steps=last), evaluate.Options())


def test_checkpoints_are_measured_once_until_the_last_step(monkeypatch):
    measured = []
    follow(monkeypatch, [2, 1], measured.append)
    assert measured == [1, 2, 3, 4]


def test_a_run_that_ended_early_is_followed_to_its_end(monkeypatch):
    measured = []
    follow(monkeypatch, [1, 2], measured.append, last=9, done=lambda: True)
    assert measured == [1, 2]


def test_what_retention_removed_is_named_and_missed(monkeypatch, capsys):
    kept, measured = [1, 2, 3], []

    def measure(step):
        if step == 1:
            kept.remove(2)  # while the first was measured
        if step not in kept:
            raise CheckpointError("the run has no checkpoint of step 2")
        measured.append(step)

    follow(monkeypatch, kept, measure)
    assert measured == [1, 3, 4]
    assert "step 2: removed before it could be evaluated" in capsys.readouterr().out


def test_a_checkpoint_that_is_there_and_damaged_is_not_passed_over(monkeypatch):
    def measure(step):
        raise CheckpointError("damaged")

    with pytest.raises(CheckpointError, match="damaged"):
        follow(monkeypatch, [1], measure)
