import pytest

from distllm.config.checks_prepare import check_prepare
from distllm.config.problems import Problems
from distllm.config.schema import Config, DataConfig
from distllm.config.schema_read import SourceConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.errors import ConfigProblems


def problems_of(**data):
    problems = Problems()
    check_prepare(Config(data=DataConfig(**data)), problems)
    try:
        problems.raise_if_any()
    except ConfigProblems as error:
        return [problem.cause for problem in error.problems]
    return []


FILES = {"source": "text", "paths": ("corpus",)}


@pytest.mark.parametrize(
    "data",
    [
        {},
        FILES,
        {"source": "pairs", "paths": ("a.tsv",), "languages": ("en", "de")},
        {"source": "many", "sources": {"a": SourceConfig(**FILES, clean="web"), "b": SourceConfig()}},
    ],
)
def test_what_can_be_prepared_has_no_problem(data):
    assert problems_of(**data) == []


@pytest.mark.parametrize(
    ("data", "causes"),
    [
        ({"source": "jsonl"}, ["data.source=jsonl needs input files"]),
        ({**FILES, "out": "s3://bucket/data"}, ["data.out=s3://bucket/data is a URL"]),
        ({"paths": ("x",)}, ["takes no paths"]),
        ({**FILES, "sources": {"a": SourceConfig()}}, ["data.sources names a, but data.source=text"]),
        ({"source": "many"}, ["needs sources"]),
        ({"source": "many", "paths": ("x",)}, ["needs sources", "data.paths belongs to a single source"]),
        ({"source": "many", "sources": {"a": SourceConfig(source="many")}}, ["the source a is itself many"]),
        (
            {
                "source": "many",
                "sources": {"a": SourceConfig(**FILES, clean="wep"), "b": SourceConfig(source="csv")},
            },
            ["unknown cleaning profile 'wep'", "data.sources.b.source=csv needs input files"],
        ),
        ({**FILES, "delimiter": "ab"}, ["data.delimiter is 'ab', not one character"]),
        ({**FILES, "encoding": "utf-9"}, ["unknown encoding 'utf-9'"]),
        ({**FILES, "languages": ("en",)}, ["data.languages names 1"]),
        ({"source": "pairs", "paths": ("x",), "fields": ("a",)}, ["data.fields names 1"]),
    ],
)
def test_every_problem_is_named(data, causes):
    found = problems_of(**data)
    assert len(found) == len(causes)
    assert all(cause in problem for cause, problem in zip(causes, found, strict=True))


def test_a_missing_tokenizer_is_named():
    problems = Problems()
    check_prepare(Config(tokenizer=TokenizerConfig(path="missing.json")), problems)
    with pytest.raises(ConfigProblems, match="1 problem") as error:
        problems.raise_if_any()
    assert "tokenizer missing.json does not exist" in str(error.value)
