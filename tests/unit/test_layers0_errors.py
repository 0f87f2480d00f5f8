import re

import pytest

from distllm import errors
from distllm.errors import ConfigError, ConfigProblems, DistllmError, StorageError

LINE = re.compile(r"(?P<tree>[│ ]*[├└]── )(?P<name>\w+) +exit (?P<code>\d+)")


def documented():
    """The tree of the module's docstring: (class, its parent, exit code)."""
    ancestors = [DistllmError]
    for match in filter(None, map(LINE.match, errors.__doc__.splitlines())):
        depth = len(match["tree"]) // 4
        cls = getattr(errors, match["name"])
        del ancestors[depth:]
        yield cls, ancestors[-1], int(match["code"])
        ancestors.append(cls)


def subclasses(cls):
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def test_the_documented_tree_is_the_real_one():
    tree = list(documented())
    assert {cls for cls, _, _ in tree} == {
        c for c in subclasses(DistllmError) if c.__module__ == errors.__name__
    }
    assert [(cls.__base__, cls.exit_code) for cls, _, _ in tree] == [(base, code) for _, base, code in tree]


def test_a_message_is_cause_then_where_then_remedy():
    error = StorageError("disk full", where="/data", remedy="free space")
    assert str(error) == "disk full\n  where:  /data\n  remedy: free space"
    assert (error.cause, error.where, error.remedy) == ("disk full", "/data", "free space")


@pytest.mark.parametrize(
    ("more", "shown"),
    [({}, "bad"), ({"where": "x"}, "bad\n  where:  x"), ({"remedy": "y"}, "bad\n  remedy: y")],
)
def test_a_message_shows_only_what_is_known(more, shown):
    assert str(DistllmError("bad", **more)) == shown


def test_errors_are_printed_by_one_rank_only_if_all_raise_them():
    error = DistllmError("bad")
    assert not error.everywhere
    error.everywhere = True
    assert not DistllmError("another").everywhere


def test_problems_are_numbered_and_each_keeps_its_form():
    problems = ConfigProblems([ConfigError("one", where="a", remedy="b"), ConfigError("two")])
    assert str(problems) == (
        "2 problems in the configuration:\n1. one\n  where:  a\n  remedy: b\n2. two"
    )  # fmt: skip
    assert [problem.cause for problem in problems.problems] == ["one", "two"]
    assert problems.exit_code == 64


def test_one_problem_is_singular_and_none_is_a_mistake_of_ours():
    assert str(ConfigProblems([ConfigError("one")])).startswith("1 problem in the configuration:")
    with pytest.raises(ValueError):
        ConfigProblems([])


def test_problems_do_not_follow_the_list_they_were_made_from():
    found = [ConfigError("one")]
    problems = ConfigProblems(found)
    found.append(ConfigError("two"))
    assert len(problems.problems) == 1
