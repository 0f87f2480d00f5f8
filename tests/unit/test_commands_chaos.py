"""`distllm chaos` as a command: what it refuses, what it runs, and what its exit code says."""

import json
import shlex

import pytest
import tiny

from distllm.cli import main
from distllm.cluster import drill_runs
from distllm.cluster.drill_runs import Ground
from distllm.cluster.scorecard import Command, Row
from distllm.commands import chaos


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.prepare(tmp_path_factory.mktemp("command"))


def run(root, *more):
    return main(["chaos", *tiny.overrides(root, "engine=local", "name=x", *more)])


@pytest.mark.parametrize(
    ("more", "cause"),
    [
        ((), "no kind of fault is asked for"),
        (("chaos=ci",), "these faults need 28 steps, and the run has 8"),
        (("chaos=ci", "chaos.kinds=[kil]"), "unknown kind of fault 'kil'"),
        (("chaos=ci", "chaos.spacing=2"), "chaos.spacing"),
        (("-m", "chaos=ci"), "drills one experiment"),
    ],
)
def test_what_cannot_be_drilled_is_refused_before_anything_starts(root, capsys, more, cause):
    assert run(root, *more) == 64
    assert cause in capsys.readouterr().err
    assert not (root / "runs" / "x-chaos").exists()


def test_the_configuration_is_shown_on_request(root, capsys):
    assert run(root, "chaos=ci", "--cfg", "job") == 0
    assert "flip_checkpoint" in capsys.readouterr().out


@pytest.fixture
def started(monkeypatch):
    """Drills that end at once; the words of every start."""
    words = []

    def start(ground, name, more, variables=None):
        words.append((name, list(more), ground))
        return Command(0, 0.0, 1.0)

    monkeypatch.setattr(drill_runs, "_start", start)
    return words


def judged(monkeypatch, *problems):
    rows = [Row(f"kill@{n}:0", "", 0.1, 1, 2.0, 0, "bit-equal", text) for n, text in enumerate(problems)]
    monkeypatch.setattr(drill_runs, "score", lambda *_: rows)


WORDS = ("chaos=ci", "chaos.kinds=[kill,term]", "chaos.spacing=4", "train.max_steps=40")


def test_all_survived_is_0_and_written_down(root, started, monkeypatch, capsys):
    judged(monkeypatch, "", "")
    assert run(root, *WORDS, "train.stop_at_step=3") == 0
    card = json.loads((root / "runs" / "x-chaos" / "scorecard.json").read_text())
    assert (card["passed"], len(card["rows"]), card["spacing"], card["ranks"]) == (True, 2, 4, 2)
    output = capsys.readouterr().out
    assert "2 of 2 survived" in output
    (reference, words, ground), (recover, faults, _) = started
    assert (reference, recover) == ("reference", "recover")
    assert words == ["train.stop_at_step=" + faults[0].partition("=")[2]]
    assert faults[1].startswith("chaos.faults=[kill@")
    assert not [word for word in ground.overrides if word.startswith(("name=", "runs_dir=", "train.stop"))]
    assert "checkpoint.every_steps=2" in ground.overrides
    assert ground.directory == (root / "runs" / "x-chaos").absolute()


def test_one_fault_that_was_not_survived_is_an_error(root, started, monkeypatch, capsys):
    judged(monkeypatch, "", "it was not noticed")
    assert run(root, *WORDS) == 70
    said = capsys.readouterr()
    assert "1 of 2 survived" in said.out
    assert "FAILED: it was not noticed" in said.out
    assert "1 faults were not survived" in said.err


def test_only_an_earlier_drill_is_removed(root, started, monkeypatch, capsys):
    judged(monkeypatch, "")
    assert run(root, *WORDS, "name=y") == 0
    assert run(root, *WORDS, "name=y") == 0
    (root / "runs" / "y-chaos" / "drills").unlink()
    assert run(root, *WORDS, "name=y") == 64
    assert "was not made by an earlier drill" in capsys.readouterr().err
    assert (root / "runs" / "y-chaos" / "scorecard.json").exists()


def test_an_experiment_that_does_not_work_is_told_apart(root, monkeypatch, capsys):
    monkeypatch.setattr(drill_runs, "_start", lambda *_: Command(65, 0.0, 1.0))
    assert run(root, *WORDS) == 70
    assert "the run without faults ended with exit code 65" in capsys.readouterr().err


def test_a_launcher_of_the_users_starts_the_runs(tmp_path):
    script = "import sys; print(sys.argv[1:]); sys.exit(75)"
    ground = Ground(tmp_path, ["a=1"], ["python3", "-c", script], tmp_path, 30.0)
    command = drill_runs._start(ground, "run", ["b=2"])
    assert command.code == 75
    assert command.ended >= command.began
    said = (tmp_path / "run.log").read_text()
    assert shlex.split(said) == shlex.split(str(["a=1", "b=2", f"runs_dir={tmp_path}", "name=run"]))


def test_ranks_of_a_drill_do_not_inherit_a_place(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    script = "import os; print(os.environ.get('RANK'), os.environ['EXTRA'])"
    ground = Ground(tmp_path, [], ["python3", "-c", script], tmp_path, 30.0)
    drill_runs._start(ground, "run", [], {"EXTRA": "yes"})
    assert (tmp_path / "run.log").read_text() == "None yes\n"


def test_the_last_error_of_a_log_is_that_of_distllm(tmp_path):
    log = tmp_path / "log"
    log.write_text("1/4 loss\ndistllm: first\n  where: x\ndistllm: second\nTraceback\n")
    assert drill_runs._last_error(log) == "second"
    log.write_text("nothing")
    assert drill_runs._last_error(log) == ""
    assert chaos.FAILED == 70
