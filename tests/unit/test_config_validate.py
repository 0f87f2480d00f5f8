from dataclasses import asdict, dataclass, field
from typing import Literal

import pytest

from distllm.config.keys import flatten, keys, leaves, nested
from distllm.config.options import option
from distllm.config.problems import Problems
from distllm.config.schema import Config, DataConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.config.validate import build, coerce, describe
from distllm.config.yaml import from_yaml, to_yaml
from distllm.errors import ConfigProblems, IntegrityError


@dataclass(frozen=True)
class Inner:
    mode: Literal["fast", "exact"] = option("fast", "how")
    sizes: tuple[int, ...] = option((), "sizes", minimum=1)


@dataclass(frozen=True)
class Tree:
    text: str = option("t", "some text")
    maybe_text: str | None = option(None, "perhaps text")
    flag: bool = option(False, "on or off")
    whole: int = option(1, "a whole number", minimum=0, maximum=10)
    count: int | None = option(None, "how many", unit="count", minimum=1)
    size: int = option(1, "how large", unit="bytes")
    real: float = option(0.5, "a number", minimum=0.0, maximum=1.0)
    inner: Inner = field(default_factory=Inner)


FIELDS = {leaf.path: leaf for leaf in leaves(Tree)}


def coerced(key, value):
    return coerce(value, FIELDS[key].annotation, FIELDS[key].field)


def built(raw):
    problems = Problems()
    return build(Tree, raw, problems), problems


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("text", "a", "a"),
        ("text", 12, "12"),
        ("text", 0.5, "0.5"),
        ("maybe_text", None, None),
        ("flag", True, True),
        ("whole", 3, 3),
        ("whole", 3.0, 3),
        ("count", None, None),
        ("count", "2k", 2000),
        ("count", "1_000", 1000),
        ("size", "2KiB", 2048),
        ("real", 1, 1.0),
        ("real", "1e-4", 1e-4),
        ("inner.mode", "exact", "exact"),
        ("inner.sizes", [1, 2.0], (1, 2)),
        ("inner.sizes", (), ()),
    ],
)
def test_a_value_takes_the_type_of_its_field(key, given, expected):
    got = coerced(key, given)
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("key", "given", "complaint"),
    [
        ("text", None, "expected text"),
        ("text", True, "expected text"),
        ("text", ["a"], "expected text"),
        ("maybe_text", False, "expected text"),
        ("flag", 1, "expected true or false"),
        ("flag", "true", "expected true or false"),
        ("flag", None, "expected true or false"),
        ("whole", True, "expected a number"),
        ("whole", None, "expected a number"),
        ("whole", 1.5, "expected a whole number"),
        ("whole", float("inf"), "expected a whole number"),
        ("whole", "5", "expected a whole number"),
        ("whole", -1, "below the least allowed value 0"),
        ("whole", 11, "above the greatest allowed value 10"),
        ("count", "2KiB", "'2KiB' is not a count"),
        ("count", 0, "below the least allowed value 1"),
        ("count", "0k", "below the least allowed value 1"),
        ("size", "2k", "'2k' is not a size"),
        ("real", "fast", "expected a number"),
        ("real", [0.5], "expected a number"),
        ("real", False, "expected a number"),
        ("real", float("nan"), "not a finite number"),
        ("real", "nan", "not a finite number"),
        ("real", "inf", "not a finite number"),
        ("real", 10**400, "expected a number"),
        ("inner.mode", "Fast", "not one of fast, exact; did you mean 'fast'?"),
        ("inner.mode", None, "not one of fast, exact"),
        ("inner.mode", ["fast"], "not one of fast, exact"),
        ("inner.sizes", 1, "expected a list"),
        ("inner.sizes", "12", "expected a list"),
        ("inner.sizes", [1, 0], "below the least allowed value 1"),
        ("inner.sizes", [1, None], "expected a number"),
    ],
)
def test_a_wrong_value_is_refused_for_its_own_reason(key, given, complaint):
    with pytest.raises(ValueError) as caught:
        coerced(key, given)
    assert complaint in str(caught.value)


def test_bounds_themselves_are_allowed():
    assert [coerced("whole", value) for value in (0, 10)] == [0, 10]
    assert [coerced("real", value) for value in (0, 1)] == [0.0, 1.0]


def test_absent_keys_take_their_defaults():
    tree, problems = built({"inner": {"mode": "exact"}, "whole": 2})
    assert tree == Tree(whole=2, inner=Inner(mode="exact"))
    assert len(problems) == 0


def test_every_problem_is_noted_at_its_path_and_the_rest_is_built():
    tree, problems = built(
        {"whole": "x", "real": 0.25, "txet": "a", "inner": {"mode": "slow", "sizes": [3]}, "size": True}
    )
    assert [problem.where for problem in problems.found] == ["whole", "txet", "inner.mode", "size"]
    assert problems.found[0].cause == "whole='x': expected a whole number"
    assert problems.found[0].remedy == "a whole number (at least 0, at most 10)"
    assert tree == Tree(real=0.25, inner=Inner(sizes=(3,)))


def test_a_group_is_no_value():
    tree, problems = built({"inner": "fast"})
    (problem,) = problems.found
    assert problem.cause == "inner is a group of keys, not a value: 'fast'"
    assert problem.remedy == "set a key inside it, such as inner.mode"
    assert tree.inner == Inner()


def test_a_value_is_no_group():
    (problem,) = built({"whole": {"deep": 1}})[1].found
    assert problem.where == "whole"


def test_checks_of_combinations_skip_suspects_only():
    _, problems = built({"whole": -1, "maybe_txt": "meant"})
    assert problems.suspects == {"whole", "maybe_text"}
    for key in ("whole", "maybe_text", "real"):
        problems.check(False, "impossible", keys=[key, "flag"], remedy="change it")
    problems.check(True, "possible", keys=["real"], remedy="leave it")
    assert [problem.where for problem in problems.found[2:]] == ["real, flag"]


def test_problems_are_raised_together_or_not_at_all():
    Problems().raise_if_any()
    _, problems = built({"whole": -1, "real": 2})
    with pytest.raises(ConfigProblems) as caught:
        problems.raise_if_any()
    assert list(caught.value.problems) == problems.found


def test_a_target_is_code_and_never_a_typo():
    _, problems = built({"inner": {"_target_": "os.system"}})
    (problem,) = problems.found
    assert "would run code" in problem.cause
    assert problem.where == "inner._target_"
    assert not problems.suspects


def test_leaves_are_the_keys_in_the_order_of_declaration():
    assert keys(Tree) == (
        "text", "maybe_text", "flag", "whole", "count", "size", "real", "inner.mode", "inner.sizes",
    )  # fmt: skip
    assert FIELDS["inner.mode"].field.name == "mode"
    assert FIELDS["count"].annotation == int | None


def test_keys_and_flattened_values_are_the_same_paths():
    tree = asdict(Config())
    assert list(flatten(tree)) == [leaf.path for leaf in leaves(Config, tree)]
    assert flatten({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("text", "some text"),
        ("count", "how many (at least 1)"),
        ("whole", "a whole number (at least 0, at most 10)"),
    ],
)
def test_a_field_is_described_by_its_help_and_range(key, text):
    assert describe(FIELDS[key].field) == text


def test_every_default_of_the_schema_is_allowed_by_its_own_field():
    for leaf in leaves(Config):
        problems = Problems()
        path = leaf.path.removesuffix(".*")  # the default of a mapping of scalars is the mapping
        assert build(Config, nested(path.replace("*", "name"), leaf.default), problems)
        assert len(problems) == 0, leaf.path
        assert leaf.field.metadata["help"], leaf.path


@pytest.mark.parametrize(
    "text",
    ["123", "null", "true", "1e-3", "a: b # c", " lead\n", "~", "ż\u2028", "${seed}", "", "'\"", "0x1f"],
)
def test_a_configuration_survives_yaml(tmp_path, text):
    config = Config(name=text, tokenizer=TokenizerConfig(path=text), data=DataConfig(paths=(text, "b")))
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(asdict(config)), encoding="utf-8")
    problems = Problems()
    assert build(Config, from_yaml(path), problems) == config
    assert len(problems) == 0


def test_yaml_keeps_the_order_and_writes_tuples_as_lists():
    assert to_yaml({"b": (1, 2), "a": {"d": None, "c": 1.5}}) == (
        "b:\n- 1\n- 2\na:\n  d: null\n  c: 1.5\n"
    )  # fmt: skip


def test_an_empty_file_is_an_empty_mapping(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    assert from_yaml(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "cannot read"),
        (b"a: [1", "cannot read"),
        (b"a: !!python/object/apply:os.system ['touch owned']", "cannot read"),
        (b"\xff\xfe\x00", "cannot read"),
        (b"- 1\n- 2\n", "holds no configuration"),
    ],
)
def test_what_is_no_yaml_mapping_is_an_integrity_error(tmp_path, monkeypatch, content, cause):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(IntegrityError, match=cause) as caught:
        from_yaml(path)
    assert caught.value.where == str(path)
    assert not (tmp_path / "owned").exists()
