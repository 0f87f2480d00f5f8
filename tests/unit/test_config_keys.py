"""Keys below names the user chooses, and lists of groups: found, checked and named by full path."""

from dataclasses import asdict, dataclass, field

import pytest

from distllm.config.compose import compose, composition_of, sources_of
from distllm.config.diff import changes
from distllm.config.explain import explanation, render, select
from distllm.config.keys import (
    flatten,
    holds_keys,
    is_key,
    keys,
    leaves,
    merged,
    nested,
    note_unknown_key,
    wrong_names,
)
from distllm.config.options import option
from distllm.config.problems import Problems
from distllm.config.resolve import resolve
from distllm.config.schema import Config
from distllm.config.validate import build
from distllm.config.yaml import from_yaml, to_yaml
from distllm.errors import ConfigError, ConfigProblems


@dataclass(frozen=True)
class Phase:
    start: int = option(0, "first token", unit="count", minimum=0)
    weights: dict[str, float] = option(None, "shares", factory=dict, minimum=0.0)


@dataclass(frozen=True)
class Part:
    size: int | None = option(None, "how large", unit="bytes", minimum=1)
    tags: tuple[str, ...] = option((), "labels")
    names: dict[str, str] = option(None, "columns by role", factory=dict)


@dataclass(frozen=True)
class Mixed:
    parts: dict[str, Part] = option(None, "parts by name", factory=dict)
    weights: dict[str, float] = option(None, "weights by name", factory=dict, minimum=0.0, maximum=9.0)
    counts: dict[str, int] | None = option(None, "counts by name", unit="count")
    phases: tuple[Phase, ...] = option((), "one after the other")


@dataclass(frozen=True)
class Tree:
    seed: int = option(0, "root")
    mixed: Mixed = field(default_factory=Mixed)


KEYS = (
    "seed", "mixed.parts.*.size", "mixed.parts.*.tags", "mixed.parts.*.names.*", "mixed.weights.*",
    "mixed.counts.*", "mixed.phases",
)  # fmt: skip


def built(**mixed):
    problems = Problems()
    tree = build(Tree, {"mixed": mixed}, problems)
    return tree.mixed, problems.found


def test_names_are_free_and_everything_else_is_not():
    assert keys(Tree) == KEYS
    for path in ("mixed.parts.wiki.size", "mixed.parts.a.names.b", "mixed.weights.x-1", "seed"):
        assert is_key(path, KEYS), path
    for path in ("mixed.parts.wiki", "mixed.parts.wiki.siz", "mixed.parts.size", "mixed.weights", "mixed",
                 "mixed.weights.a.b", "mixed.parts.a.names", "seed.x"):  # fmt: skip
        assert not is_key(path, KEYS), path


def test_only_mappings_of_names_and_their_entries_hold_keys():
    for path in ("mixed.parts", "mixed.parts.wiki", "mixed.parts.wiki.names", "mixed.weights"):
        assert holds_keys(path, KEYS), path
    for path in ("mixed", "seed", "mixed.weights.a", "mixed.part", "mixed.parts.wiki.tags", ""):
        assert not holds_keys(path, KEYS), path


def test_leaves_of_values_have_the_names_of_the_values():
    tree = {"mixed": {"parts": {"b": {"names": {"x": "y"}}, "a": {}}, "weights": {"c": 1}}}
    assert [leaf.path for leaf in leaves(Tree, tree)] == [
        "seed", "mixed.parts.b.size", "mixed.parts.b.tags", "mixed.parts.b.names.x", "mixed.parts.a.size",
        "mixed.parts.a.tags", "mixed.parts.a.names", "mixed.weights.c", "mixed.counts", "mixed.phases",
    ]  # fmt: skip


def test_mappings_and_lists_of_groups_are_built_with_units_inside():
    mixed, found = built(
        parts={"a": {"size": "64MiB", "tags": ["x"], "names": {"text": "body"}}, "b": {}},
        weights={"a": 2, "b": "1e-1"},
        counts={"a": "2B"},
        phases=[{"start": "1k", "weights": {"a": 1}}, {}],
    )
    assert found == []
    assert mixed == Mixed(
        parts={"a": Part(64 * 2**20, ("x",), {"text": "body"}), "b": Part()},
        weights={"a": 2.0, "b": 0.1},
        counts={"a": 2 * 10**9},
        phases=(Phase(1000, {"a": 1.0}), Phase()),
    )
    assert list(mixed.parts) == ["a", "b"]


@pytest.mark.parametrize(
    ("mixed", "where", "cause", "remedy"),
    [
        ({"parts": {"a": {"siez": 1}}}, "mixed.parts.a.siez", "unknown key", "'mixed.parts.a.size'"),
        ({"parts": {"a": {"size": 0}}}, "mixed.parts.a.size", "below the least", "how large (at least 1)"),
        ({"parts": {"a": {"size": "2X"}}}, "mixed.parts.a.size", "not a size", "how large"),
        ({"parts": {"a": {"names": {"x": None}}}}, "mixed.parts.a.names.x", "expected text", "columns"),
        ({"parts": {"a": 3}}, "mixed.parts.a", "a group of keys", "mixed.parts.a.size"),
        ({"parts": {"a": None}}, "mixed.parts.a", "a group of keys", "mixed.parts.a.size"),
        ({"parts": ["a"]}, "mixed.parts", "expected a mapping", "parts by name"),
        ({"parts": None}, "mixed.parts", "expected a mapping", "parts by name"),
        ({"weights": {"a": -1}}, "mixed.weights.a", "below the least", "at most 9.0"),
        ({"weights": {"a": {"b": 1}}}, "mixed.weights.a", "expected a number", "weights by name"),
        ({"weights": 3}, "mixed.weights", "expected a mapping", "weights by name"),
        ({"phases": {"start": 1}}, "mixed.phases", "expected a list of mappings", "one after the other"),
        ({"phases": [{"start": -1}]}, "mixed.phases[0].start", "below the least", "first token"),
        ({"phases": [{}, {"strat": 1}]}, "mixed.phases[1].strat", "unknown key", "'mixed.phases[1].start'"),
        ({"phases": [{"weights": {"a": "x"}}]}, "mixed.phases[0].weights.a", "expected a number", "shares"),
        ({"phases": [3]}, "mixed.phases[0]", "a group of keys", "mixed.phases[0].start"),
        ({"phases": [{"_target_": "x"}]}, "mixed.phases[0]._target_", "would run code", "optim.name"),
        ({"parts": {"_target_": "x"}}, "mixed.parts._target_", "would run code", "optim.name"),
    ],
)  # fmt: skip
def test_what_is_wrong_inside_is_named_by_its_full_path(mixed, where, cause, remedy):
    _, (problem,) = built(**mixed)
    assert problem.where == where
    assert cause in problem.cause
    assert remedy in problem.remedy


def test_a_wrong_entry_is_noted_and_the_others_are_built():
    mixed, found = built(weights={"a": "x", "b": 1, "c": 10}, phases=[{"start": "x"}, 3, {"start": 5}])
    assert [problem.where for problem in found] == [
        "mixed.weights.a", "mixed.weights.c", "mixed.phases[0].start", "mixed.phases[1]",
    ]  # fmt: skip
    assert mixed.weights == {"b": 1.0}
    assert mixed.phases == (Phase(), Phase(5))


@pytest.mark.parametrize("name", ["wiki", "a-b", "_x", "0", "20news", "A"])
def test_plain_names_are_names(name):
    assert built(weights={name: 1}) == (Mixed(weights={name: 1.0}), [])
    assert wrong_names(f"mixed.parts.{name}.size", KEYS) == []


@pytest.mark.parametrize("name", ["-a", ".a", "a.b", "", "a b", "a/b", "..", "ż", "a\n", "*"])
def test_names_that_cannot_be_directories_are_refused(name):
    mixed, (problem,) = built(parts={name: {}})
    assert mixed.parts == {}
    assert problem.cause == f"{name!r} cannot be a name in a mapping"
    assert problem.where == f"mixed.parts.{name}"


@pytest.mark.parametrize("name", [2024, 1.5, True, False, None])
def test_a_name_that_yaml_does_not_read_as_text_is_refused(name):
    _, (problem,) = built(weights={name: 1})
    assert "not text" in problem.cause
    assert "quotes" in problem.remedy


def test_a_wrong_name_on_the_command_line_is_refused_at_its_place():
    assert wrong_names("mixed.parts.-x.names.a b", KEYS) == ["mixed.parts.-x", "mixed.parts.-x.names.a b"]
    assert wrong_names("mixed.parts.-x", KEYS) == ["mixed.parts.-x"]
    with pytest.raises(ConfigProblems) as caught:
        compose(["data.sources.-x.weight=1"])
    assert [problem.where for problem in caught.value.problems] == ["data.sources.-x"]


def test_flattening_keeps_empty_mappings_and_nesting_is_its_inverse():
    assert flatten({"a": {}, "b": {"c": {"d": 1}, "e": {}}}) == {"a": {}, "b.c.d": 1, "b.e": {}}
    assert nested("a.b.c", 1) == {"a": {"b": {"c": 1}}}
    assert merged({"a": {"b": 1, "c": 2}, "d": 1}, {"a": {"b": 3}, "d": {"e": 1}}) == {
        "a": {"b": 3, "c": 2}, "d": {"e": 1},
    }  # fmt: skip


# The real schema: data.sources.


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.sources.wiki.weight=2", "data.sources.wiki.max_bytes=64MiB", "data.sources.b-2.paths=[x]"],
        ["data.sources={wiki:{weight:2,max_bytes:64MiB},b-2:{paths:[x]}}"],
        ["data.sources={wiki:{weight:9}}", "data.sources.wiki={weight:2,max_bytes:64MiB}",
         "data.sources.b-2={paths:[x]}"],
    ],
)  # fmt: skip
def test_sources_come_from_keys_or_mappings_alike(overrides):
    sources = compose(overrides).data.sources
    assert list(sources) == ["wiki", "b-2"]
    assert (sources["wiki"].weight, sources["wiki"].max_bytes) == (2.0, 64 * 2**20)
    assert sources["b-2"].paths == ("x",)


@pytest.mark.parametrize(
    ("override", "where", "remedy"),
    [
        (
            "data.sources.wiki.wieght=2",
            "data.sources.wiki.wieght",
            "did you mean 'data.sources.wiki.weight'?",
        ),
        ("data.source.wiki.weight=2", "data.source.wiki.weight", "did you mean 'data.sources.wiki.weight'?"),
        ("data.sources.wiki.x=2", "data.sources.wiki.x", "data.sources.wiki."),
        ("data.sources.wiki=2", "data.sources.wiki", "data.sources.wiki.weight"),
        ("data.sources.wikipedia=2", "data.sources.wikipedia", "data.sources.wikipedia."),
        ("data.sources.weight=2", "data.sources.weight", "data.sources"),
        ("data.sources={wiki:{wieght:2}}", "data.sources.wiki.wieght", "'data.sources.wiki.weight'"),
        ("data.sources.wiki.weigh=2", "data.sources.wiki.weigh", "'data.sources.wiki.weight'"),
        ("data.sources.wiki.paths.x=2", "data.sources.wiki.paths.x", "'data.sources.wiki.paths'"),
    ],
)
def test_unknown_keys_of_a_source_are_refused_with_the_key_that_was_meant(override, where, remedy):
    with pytest.raises(ConfigProblems) as caught:
        compose([override])
    (problem,) = caught.value.problems
    assert problem.cause == f"unknown key {where!r}"
    assert problem.where == where
    assert remedy in problem.remedy


def test_an_interpolation_reaches_the_defaults_of_a_source():
    sources = compose(
        ["data.sources.a.weight=2", "data.sources.b.weight=${data.sources.a.weight}",
         "data.sources.b.text_key=${data.sources.a.text_key}"]
    ).data.sources  # fmt: skip
    assert (sources["b"].weight, sources["b"].text_key) == (2.0, "text")


def test_sources_survive_yaml(tmp_path):
    config = compose(["data.sources.2024={paths:[a,b]}", "data.sources.no.weight=2", "data.sources.1_0={}"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(asdict(config)))
    problems = Problems()
    assert build(Config, from_yaml(path), problems) == config
    assert problems.found == []
    assert list(config.data.sources) == ["2024", "no", "1_0"]


def test_explain_names_what_set_a_key_of_a_source(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "own.yaml").write_text("sources:\n  wiki: {weight: 3, priority: 1}\n  b: {}\n")
    given = ["data=own", "data.sources.wiki={weight:4}", "data.sources.b.text_key=t", "train.max_steps=9"]
    composition = composition_of(given, config_dir=tmp_path)
    origins = {key: source.detail for key, source in sources_of(composition).items()}
    assert origins["data.sources.wiki.priority"] == "conf/data/own.yaml (data=own)"
    assert origins["data.sources.wiki.weight"] == "data.sources.wiki={weight:4}"
    assert origins["data.sources.b.text_key"] == "data.sources.b.text_key=t"
    assert origins["data.sources.b.weight"] == "default of the schema"
    table = explanation(composition, resolve(composition.config))
    text = render(select(table, "data.sources.wiki.weight"))
    assert "data.sources.wiki.weight = 4.0" in text
    assert "share in the mixture" in text
    assert len(select(table, "data.sources.wiki")) == len(select(table, "data.sources.b")) > 4
    with pytest.raises(ConfigError, match="unknown key"):
        select(table, "data.sources.wiki.wieght")


def test_explain_shows_a_mapping_without_names():
    composition = composition_of(["train.max_steps=9"])
    table = explanation(composition, resolve(composition.config))
    assert table["data.sources"]["value"] == {}


@pytest.mark.slow
def test_a_change_of_sources_shows_key_by_key():
    def tree(*overrides):
        return asdict(compose(list(overrides)))

    one = tree("data.sources.a.weight=1")
    (change,) = changes(one, tree("data.sources.a.weight=2"))
    assert str(change) == "data.sources.a.weight: 1.0 -> 2.0"
    assert change.on_resume == "identity"
    added = {change.key: change.after for change in changes(tree(), one)}
    assert added["data.sources.a.weight"] == 1.0
    assert "data.sources" not in added
    assert {change.after for change in changes(one, tree())} == {None}
    assert changes(one, from_lists(one)) == []
    before_the_key_existed = {"data": {key: value for key, value in one["data"].items() if key != "sources"}}
    assert "data.sources" not in [change.key for change in changes(before_the_key_existed, tree())]


def from_lists(tree):
    """The tree as YAML gives it back: lists for tuples."""
    if isinstance(tree, dict):
        return {key: from_lists(value) for key, value in tree.items()}
    return [from_lists(item) for item in tree] if isinstance(tree, tuple) else tree


@pytest.mark.parametrize(
    ("word", "group"),
    [
        ("engine.zero_quantized_weights", "engine."),
        ("cluster.health.hold_back_until", "cluster.health."),
        ("foooooooo", None),
    ],
)
def test_what_resembles_no_key_is_answered_with_its_group_and_not_with_all_keys(word, group):
    problems = Problems()
    note_unknown_key(word, keys(Config), problems)
    offered = problems.found[0].remedy.removeprefix("use one of: ").split(", ")
    expected = {key for key in keys(Config) if group and key.startswith(group)}
    assert set(offered) == (expected or {key.partition(".")[0] for key in keys(Config)})
