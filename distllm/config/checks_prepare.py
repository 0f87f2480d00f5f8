"""Checks of the keys that `distllm prepare` reads."""

from __future__ import annotations

import codecs
from pathlib import Path

from distllm.config.checks_clean import check_clean
from distllm.config.compose import PACKAGE_CONF
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.schema_read import ReadConfig
from distllm.registry import did_you_mean

_MANY = "many"
_FIELDED = ("pairs", "preferences", "qa", "chat")


def check_prepare(config: Config, problems: Problems) -> None:
    """Check what `distllm prepare` needs; adds every problem and raises none."""
    data = config.data
    if data.source == _MANY:
        _check_many(config, problems)
    else:
        _check_source("data", data, problems)
        problems.check(
            not data.sources,
            f"data.sources names {', '.join(data.sources)}, but data.source={data.source} is a single source",
            keys=["data.sources", "data.source"],
            remedy="data.source=many, or drop data.sources",
        )
    check_clean(config.clean, problems)
    _check_canaries(config, problems)
    problems.check(
        "://" not in data.out,
        f"data.out={data.out} is a URL, and a dataset is prepared in a local directory",
        keys=["data.out"],
        remedy="prepare it in data.out=DIR, copy DIR there, and train with the URL",
    )
    tokenizer = config.tokenizer.path
    problems.check(
        tokenizer is None or Path(tokenizer).exists(),
        f"tokenizer {tokenizer} does not exist",
        keys=["tokenizer.path"],
        remedy="give a tokenizer.json or its folder, or tokenizer.path=null to train one",
    )


def _check_canaries(config: Config, problems: Problems) -> None:
    canaries = config.privacy.canaries
    if not canaries.repeats:
        return
    kinds = [source.source for source in config.data.sources.values()] or [config.data.source]
    problems.check(
        not set(kinds) <= set(_FIELDED),
        f"canaries are plain texts, and documents of {', '.join(sorted(set(kinds)))} have other fields",
        keys=["privacy.canaries.repeats", "data.source"],
        remedy="plant them in a source of text, or privacy.canaries.repeats=[]",
    )
    problems.check(
        canaries.text.count("{}") == 1,
        f"a canary needs one place for its digits: {canaries.text!r} has {canaries.text.count('{}')}",
        keys=["privacy.canaries.text"],
        remedy="write {} once, as in 'My access code is {}'",
    )
    problems.check(
        len(canaries.repeats) <= canaries.space,
        f"{len(canaries.repeats)} canaries cannot be planted: privacy.canaries.space is {canaries.space}",
        keys=["privacy.canaries.repeats", "privacy.canaries.space"],
        remedy=f"privacy.canaries.space={10 * len(canaries.repeats)}",
    )


def _check_many(config: Config, problems: Problems) -> None:
    data = config.data
    problems.check(
        bool(data.sources),
        "data.source=many needs sources",
        keys=["data.sources"],
        remedy="give data.sources.NAME.source=... and .paths=[...], or a YAML file (see conf/data/many.yaml)",
    )
    problems.check(
        not data.paths,
        "data.paths belongs to a single source, data.source=many has one list for each",
        keys=["data.paths", "data.source"],
        remedy="set data.sources.NAME.paths",
    )
    profiles = sorted(path.stem for path in (PACKAGE_CONF / "clean").glob("*.yaml"))
    for name, source in data.sources.items():
        place = f"data.sources.{name}"
        problems.check(
            source.source != _MANY,
            f"the source {name} is itself many",
            keys=[f"{place}.source"],
            remedy="name its sources beside the others",
        )
        if source.source != _MANY:
            _check_source(place, source, problems)
        problems.check(
            source.clean is None or source.clean in profiles,
            f"unknown cleaning profile {source.clean!r}",
            keys=[f"{place}.clean"],
            remedy=did_you_mean(source.clean or "", profiles),
        )


def _check_source(place: str, read: ReadConfig, problems: Problems) -> None:
    """Check one source, whose keys are below ``place``."""
    problems.check(
        read.source == "pydocs" or bool(read.paths),
        f"{place}.source={read.source} needs input files",
        keys=[f"{place}.paths"],
        remedy=f"give {place}.paths=[FILE_OR_DIRECTORY,...]",
    )
    problems.check(
        read.source != "pydocs" or not read.paths,
        f"{place}.source=pydocs reads this Python environment and takes no paths",
        keys=[f"{place}.source", f"{place}.paths"],
        remedy="choose data=text or data=jsonl for your own files, or drop the paths",
    )
    problems.check(
        read.source != "pairs" or len(read.fields) == 2,
        f"a pair has two sides, {place}.fields names {len(read.fields)}",
        keys=[f"{place}.fields"],
        remedy=f"{place}.fields=[source,target]",
    )
    problems.check(
        len(read.languages) in (0, 2),
        f"a pair has two languages, {place}.languages names {len(read.languages)}",
        keys=[f"{place}.languages"],
        remedy=f"{place}.languages=[en,de]",
    )
    problems.check(
        len(read.delimiter) <= 1,
        f"{place}.delimiter is {read.delimiter!r}, not one character",
        keys=[f"{place}.delimiter"],
        remedy="use , or ; or a tab, or leave it empty",
    )
    problems.check(
        _is_encoding(read.encoding),
        f"unknown encoding {read.encoding!r}",
        keys=[f"{place}.encoding"],
        remedy="use utf-8, latin-1, cp1252, ...",
    )


def _is_encoding(name: str) -> bool:
    try:
        codecs.lookup(name)
    except LookupError:
        return False
    return True
