"""Errors know the line that made them, by which the name of their message and its page are found."""

import json

import pytest

from distllm import messages
from distllm.cli import main
from distllm.commands.explain_error import page_of
from distllm.config.problems import Problems
from distllm.errors import (
    ConfigError,
    ConfigProblems,
    DataError,
    DistllmError,
    StorageError,
    error_from_facts,
)
from distllm.messages import PACKAGE, messages_named, messages_of, name_of, shown
from distllm.registry import Registry
from distllm.train.run_directory import locate_run

SOURCE = '''
def find(name, path, problems, problem):
    """Find it.

    Raises:
        ConfigError: nothing is called so, in any
            of the places.
        DataError: it is damaged.
    """
    if path is None:
        raise ConfigError(
            f"no thing {name!r}", where=str(path),
            remedy=f"use {problem}" if problem else "make one",
        )
    problems.check(path.exists(), f"{path} does not exist", keys=["a", "b"], remedy="make it")
    try:
        path.read_text()
    except OSError as error:
        raise DataError(f"{path} {problem}", where="it", remedy=did_you_mean(name, path)) from error

def relay(cause):
    return ConfigError(cause, where="x", remedy="y")
'''


@pytest.fixture
def found(tmp_path, monkeypatch):
    monkeypatch.setattr(messages, "PACKAGE", tmp_path / "distllm")
    (tmp_path / "distllm" / "room").mkdir(parents=True)
    file = tmp_path / "distllm" / "room" / "thing.py"
    file.write_text(SOURCE)
    return file, messages_of(file)


def test_messages_are_read_from_the_source_with_what_decides(found):
    refused, checked, damaged = found[1]
    assert (refused.name, refused.kind, refused.room) == ("no-thing", "ConfigError", "room")
    assert refused.cause == ("no thing '<name>'",)
    assert refused.remedy == ("use <problem>", "make one")
    assert refused.condition == "if path is None"
    assert refused.means == "nothing is called so, in any of the places."
    assert refused.exit_code == 64
    assert (checked.name, checked.where) == ("path-does-not-exist", ("a, b",))
    assert checked.condition == "not (path.exists())"
    assert damaged.name == "thing-find"
    assert damaged.condition == "except OSError"
    assert damaged.remedy[0] == "did you mean <the closest name>?"
    assert (damaged.means, damaged.exit_code) == ("it is damaged.", 65)


def test_a_line_finds_the_message_around_it(found):
    file, all_ = found
    for one in all_:
        for line in range(one.lines[0], one.lines[1] + 1):
            assert messages_of(file, line) == [one]
    assert messages_of(file, 2) == []


def caught(action):
    with pytest.raises(DistllmError) as error:
        action()
    return error.value


def test_an_error_has_the_name_of_its_message_wherever_it_is_told():
    error = caught(lambda: locate_run("absent"))
    assert name_of(error) == "no-run"
    assert name_of(error_from_facts(json.loads(json.dumps(error.facts())))) == "no-run"
    assert str(error_from_facts(error.facts())) == str(error)
    told = error.recast(DataError, where="here", remedy="that")
    assert (type(told), name_of(told), str(told)) == (
        DataError, "no-run", "no run 'absent'\n  where:  here\n  remedy: that"
    )  # fmt: skip
    problems = Problems()
    problems.pass_on(error, where="a", remedy="b")
    assert name_of(problems.found[0]) == "no-run"
    assert name_of(caught(lambda: Registry("thing", "x", {"a": 1})["b"])) == "registry-unknown"


def test_what_was_made_elsewhere_has_no_name_and_is_shown_as_it_is():
    error = ConfigError("one", where="a")
    assert name_of(error) is None
    assert shown(error) == "one\n  where:  a"
    error.made_at = None
    assert name_of(error) is None
    error.made_at = (str(PACKAGE / "gone.py"), 3)
    assert name_of(error) is None


def test_each_problem_is_shown_with_its_name():
    from distllm.config.schema import Config
    from distllm.config.validate import build

    problems = Problems()
    build(Config, {"optim": {"lr": "fast", "lrr": 1}}, problems)
    first, second = problems.found
    text = shown(ConfigProblems([first, second, ConfigError("mine")]))
    assert "1. optim.lr='fast': expected a number  [wrong-value]\n" in text
    assert "2. unknown key 'optim.lrr'  [unknown-key]\n" in text
    assert text.endswith("3. mine\n  more:   distllm explain error=NAME")
    assert shown(first).endswith("\n  more:   distllm explain error=wrong-value")


@pytest.mark.slow
def test_the_command_line_names_a_page_and_shows_it(capsys):
    assert main(["ledger", "run=absent"]) == 64
    printed = capsys.readouterr().err
    assert printed.startswith("distllm: no run 'absent'  [no-run]\n")
    assert printed.endswith("  more:   distllm explain error=no-run\n")
    assert main(["explain", "error=no-run"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("# `no run '<run>'`\n")
    assert "- remedy: `train one first: distllm train experiment=demo`" in page
    assert "exit code 64" in page
    assert main(["explain", "error=no-runn"]) == 64
    assert "did you mean 'no-run'?" in capsys.readouterr().err


def test_a_page_leads_to_keys_and_guides_and_shows_an_example():
    (one,) = messages_named("task-name-needs-model-of-family-and-this-is")
    page = page_of([one], example="said so")
    assert "```text\ndistllm: said so\n```" in page
    assert "[`task.name`](../configuration.md#task)" in page
    assert "[configuration](../../configuration.md)" in page
    assert "docs/configuration.md" in page_of([one], links=False)
    assert "## What to do" in page


def test_pages_of_several_places_tell_them_apart():
    several = messages_named("path-does-not-exist")
    page = page_of(several)
    assert {"IntegrityError", "DataError"} <= {one.kind for one in several}
    for one in several:
        assert one.path in page


def test_a_storage_error_of_another_rank_keeps_words_and_class():
    error = StorageError("full", where="/d", remedy="free")
    again = error_from_facts(error.facts())
    assert (type(again), str(again), again.made_at) == (StorageError, str(error), error.made_at)
