import inspect
import pickle
from importlib.metadata import EntryPoint

import pytest

from distllm.config import checks_clean
from distllm.config.checks_clean import check_clean
from distllm.config.checks_prepare import check_prepare
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.schema_clean import CleanConfig, GopherConfig, RepetitionConfig
from distllm.data.clean import Cleaner, load_profile, marks_of_filters
from distllm.data.clean.profiles import profile_names
from distllm.data.records import Document
from distllm.errors import ConfigError, DataError

PROSE = (
    "The river rose in the night and took the bridge with it. Nobody had expected that much water, "
    "though the old men of the village had talked about the flood of their youth for years. In the "
    "morning the children stood on the bank and threw sticks into the brown water, and their mothers "
    "called them home. By noon the sun was out again, and people began to count what they had lost. "
    "Most of it was wood."
)


def clean(text, config):
    return Cleaner(config)(Document.from_text("d", text))


def no_bridges(document):
    return "it mentions a bridge" if "bridge" in document.text else document


def shout(document):
    return Document(document.id, {"text": document.text.upper()}, document.language)


def offer(monkeypatch, **functions):
    points = [EntryPoint(name, "nowhere:nothing", checks_clean.FILTER_GROUP) for name in functions]
    monkeypatch.setattr(EntryPoint, "load", lambda point: functions[point.name])
    groups = {checks_clean.FILTER_GROUP: points}
    monkeypatch.setattr(checks_clean, "entry_points", lambda group: groups.get(group, []))


def test_filters_of_a_package_are_found_by_name(monkeypatch):
    offer(monkeypatch, no_bridges=no_bridges, shout=shout)
    config = CleanConfig(filters=("no_bridges", "shout"))
    dropped, _ = clean(PROSE, config)
    assert (dropped.rule, dropped.reason) == ("no_bridges", "it mentions a bridge")
    item, edited = clean(PROSE.replace("bridge", "boat"), config)
    assert (item.text.count("BOAT"), edited) == (1, ["shout"])
    assert clean(item.text, config) == (item, [])
    with pytest.raises(ConfigError) as error:
        Cleaner(CleanConfig(filters=("no_bridge",)))
    assert "no_bridges" in error.value.remedy


def broken(document):
    raise KeyError(document.text[:9])


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda document: None, "it returned None"),
        (broken, "it raised KeyError: 'The river'"),
        (lambda document: Document.from_text("other", "x"), "it returned the document other"),
    ],
)
def test_a_filter_that_fails_is_named_with_its_document(monkeypatch, function, told):
    offer(monkeypatch, mine=function)
    with pytest.raises(DataError) as error:
        clean(PROSE, CleanConfig(filters=("mine",)))
    assert f"the filter 'mine' failed on the document d: {told}" in error.value.cause
    assert error.value.where == "clean.filters"


def test_a_filter_that_cannot_be_imported_is_a_problem_of_the_configuration(monkeypatch):
    points = [EntryPoint("mine", "no_such_package:mine", checks_clean.FILTER_GROUP)]
    monkeypatch.setattr(checks_clean, "entry_points", lambda group: points)
    with pytest.raises(ConfigError, match=r"'mine' cannot be loaded from no_such_package:mine"):
        Cleaner(CleanConfig(filters=("mine",)))


def test_another_code_of_a_filter_is_another_filter(monkeypatch):
    offer(monkeypatch, mine=no_bridges, other=inspect.getsource)
    (name, here), (_, elsewhere) = marks_of_filters(["mine", "other"])
    assert name == "mine"
    assert here != elsewhere
    offer(monkeypatch, mine=shout)
    assert marks_of_filters(["mine"]) == [["mine", here]]  # the same module


def test_an_unknown_filter_without_any_offered_says_how_to_offer_one():
    with pytest.raises(ConfigError) as error:
        Cleaner(CleanConfig(filters=("mine",)))
    assert "entry point of the group distllm.filters" in error.value.remedy


def test_problems_of_a_profile_are_found_before_it_is_used(monkeypatch):
    offer(monkeypatch, no_bridges=no_bridges)
    problems = Problems()
    check_clean(
        CleanConfig(
            filters=("no_bridges", "no_bridge"),
            languages=("en", "english", "DE"),
            gopher=GopherConfig(min_words=5, max_words=4, min_mean_word_length=3, max_mean_word_length=3),
            repetition=RepetitionConfig(max_top_ngram=(0.2, 20), max_duplicate_ngram=(0, 1)),
        ),
        problems,
    )
    causes = [problem.cause for problem in problems.found]
    assert causes[:3] == [
        "unknown filter 'no_bridge'",
        *(f"{x!r} is not a language code" for x in ("english", "DE")),
    ]
    assert "min_words=5 is more than clean.gopher.max_words=4" in causes[3]
    assert "max_top_ngram" in causes[4]
    assert len(causes) == 5
    assert "'no_bridges'" in problems.found[0].remedy


@pytest.mark.parametrize("name", profile_names())
def test_profiles_have_no_problem(name):
    problems = Problems()
    check_clean(load_profile(name), problems)
    problems.raise_if_any()


def test_prepare_checks_the_profile():
    problems = Problems()
    check_prepare(Config(clean=CleanConfig(filters=("mine",))), problems)
    assert [problem.cause for problem in problems.found] == ["unknown filter 'mine'"]


def test_profiles_are_found_by_name():
    assert profile_names() == ["basic", "c4", "classical", "fineweb", "gopher", "technical", "web"]
    assert load_profile("basic") == CleanConfig()
    web = load_profile("web")
    assert (web.gopher, web.repetition) == (load_profile("gopher").gopher, load_profile("gopher").repetition)
    assert web.fineweb == load_profile("fineweb").fineweb
    with pytest.raises(ConfigError) as error:
        load_profile("wep")
    assert "'web'" in error.value.remedy


@pytest.mark.parametrize("name", ["basic", "web", "technical", "gopher", "fineweb", "c4"])
def test_good_prose_passes_every_profile(name):
    item, _ = clean(PROSE, load_profile(name))
    assert item.text == PROSE


def test_a_cleaner_travels_to_other_processes():
    for name in profile_names():
        cleaner = Cleaner(load_profile(name))
        assert pickle.loads(pickle.dumps(cleaner))(Document.from_text("d", PROSE)) == clean(
            PROSE, load_profile(name)
        )
