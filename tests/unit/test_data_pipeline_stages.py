"""Stages are done once, shared between processes, and give the same bytes however the work is cut."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distllm.config.schema import Config, DataConfig
from distllm.config.schema_clean import CleanConfig
from distllm.config.schema_privacy import PrivacyConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.manifest import Manifest
from distllm.data.pipeline import prepare, rehearse, sources, work_directory
from distllm.data.pipeline.report import describe
from distllm.data.shards import verify
from distllm.errors import RunDirectoryBusy


def sentence(i):
    return f"Document number {i} tells of {i * i} birds, {i % 7} trees and the river behind the house. " * 3


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Forty documents and a short one. Ids, and so the split, come from the paths, which are relative."""
    monkeypatch.chdir(tmp_path)
    directory = Path("corpus")
    directory.mkdir()
    for i in range(40):
        (directory / f"{i:03d}.txt").write_text(sentence(i % 36), encoding="utf-8")
    (directory / "short.txt").write_text("short")
    return directory


@pytest.fixture
def small_units(monkeypatch):
    monkeypatch.setattr(sources, "_UNIT_PARTS", 10)


def config_for(tmp_path, *, out="out", clean=None, vocab_size=300, **data):
    given = {
        "source": "text",
        "paths": ("corpus",),
        "valid_fraction": 0.1,
        "shard_bytes": 1024,
    }
    return Config(
        data=DataConfig(out=str(tmp_path / out), **{**given, **data}),
        clean=clean or CleanConfig(),
        tokenizer=TokenizerConfig(vocab_size=vocab_size),
    )


def tree(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def content(directory):
    """The dataset's files; the manifest names paths as they were given."""
    return {name: data for name, data in tree(directory).items() if name != "manifest.json"}


def finished(config):
    results = work_directory(config).glob("*/*/facts.json")
    return {(path.parts[-3], path.parts[-2]) for path in results if ".partial" not in path.parts[-2]}


def again(config):
    """Prepare once more after the dataset was removed; return the number of new results by stage."""
    before = finished(config)
    shutil.rmtree(config.data.out)
    prepare(config)
    stages = [stage for stage, _ in finished(config) - before]
    return {stage: stages.count(stage) for stage in stages}


def test_an_unchanged_stage_is_not_repeated(tmp_path, corpus, small_units):
    config = config_for(tmp_path)
    prepare(config)
    first = tree(tmp_path / "out")
    assert again(config) == {}
    assert tree(tmp_path / "out") == first


def test_a_changed_option_redoes_only_what_depends_on_it(tmp_path, corpus, small_units):
    prepare(config_for(tmp_path))
    assert again(config_for(tmp_path, vocab_size=310)) == {"tokenizer": 1, "encode": 5}
    assert again(config_for(tmp_path, clean=CleanConfig(min_chars=3))) == {
        "clean": 5, "sign": 1, "duplicates": 1, "refine": 1, "tokenizer": 1, "encode": 5,
    }  # fmt: skip
    assert again(config_for(tmp_path, shard_bytes=2048)) == {}
    assert len(Manifest.load(tmp_path / "out").splits["train"].shards) > 1


def test_a_changed_file_redoes_only_its_unit_and_what_follows(tmp_path, corpus, small_units):
    prepare(config_for(tmp_path))
    (corpus / "015.txt").write_text(sentence(99))
    redone = again(config_for(tmp_path))
    assert (redone["read"], redone["clean"], redone["sign"], redone["refine"]) == (1, 1, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 7, 1000])
def test_the_bytes_do_not_depend_on_how_the_work_is_cut(tmp_path, corpus, monkeypatch, parts):
    prepare(config_for(tmp_path))
    monkeypatch.setattr(sources, "_UNIT_PARTS", parts)
    prepare(config_for(tmp_path, out=f"cut{parts}"))
    assert content(tmp_path / f"cut{parts}") == content(tmp_path / "out")


def test_the_bytes_do_not_depend_on_the_order_of_the_input(tmp_path, corpus):
    files = sorted(str(path) for path in corpus.iterdir())
    prepare(config_for(tmp_path, paths=tuple(files)))
    prepare(config_for(tmp_path, out="turned", paths=tuple(reversed(files))))
    assert tree(tmp_path / "turned") == tree(tmp_path / "out")


@pytest.mark.parametrize("workers", [2, 3])
def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path, corpus, workers):
    prepare(config_for(tmp_path))
    prepare(config_for(tmp_path, out="many", workers=workers))
    assert content(tmp_path / "many") == content(tmp_path / "out")
    assert verify(tmp_path / "many").splits == Manifest.load(tmp_path / "out").splits


SCRIPT = """
import dataclasses, json, sys
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.validate import build
from distllm.data.pipeline import prepare, sources
sources._UNIT_PARTS = 4
prepare(build(Config, json.loads(sys.argv[1]), Problems()))
"""


def start(config):
    import json

    asked = json.dumps(dataclasses.asdict(config))
    return subprocess.Popen([sys.executable, "-c", SCRIPT, asked], stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_that_prepare_the_same_share_the_work(tmp_path, corpus):
    config = config_for(tmp_path)
    processes = [start(config) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0], [p.stderr.read() for p in processes]
    prepare(config_for(tmp_path, out="alone"))
    assert content(tmp_path / "out") == content(tmp_path / "alone")


@pytest.mark.slow
def test_a_killed_preparation_goes_on_where_it_was(tmp_path, corpus):
    prepare(config_for(tmp_path, out="whole"))
    config, kills, done = config_for(tmp_path), 0, set()
    for delay in (0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8):
        process = start(config)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert finished(config) >= {entry for entry in done if entry[0] != "shards"}
        done = finished(config)
        assert not (tmp_path / "out" / "train").exists()
    assert kills
    prepare(config)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_another_configuration_for_the_same_directory_has_to_wait(tmp_path, corpus):
    def meanwhile(progress):
        if progress.stage == "encode":
            with pytest.raises(RunDirectoryBusy, match=r"vocab_size was 300, is 310"):
                prepare(config_for(tmp_path, vocab_size=310))

    prepare(config_for(tmp_path), meanwhile)
    assert prepare(config_for(tmp_path)).vocab_size == 300


def test_a_dry_run_writes_no_dataset_and_its_work_is_used(tmp_path, corpus):
    config = config_for(tmp_path)
    report = rehearse(config)["text"]
    assert not (tmp_path / "out").exists()
    assert (report.read, report.kept) == (41, 36)
    assert report.dropped == {"duplicate": 4, "too_short": 1}
    assert report.samples["too_short"][0]["sample"] == "short"
    before = finished(config)
    prepare(config)
    assert {stage for stage, _ in finished(config) - before} == {"tokenizer", "encode"}


def test_personal_data_is_shown_by_a_dry_run_and_in_no_file_of_the_dataset(tmp_path, corpus):
    mail, token = "jane.doe@mail.example.org", "ghp_" + "a1B2c3D4e5" * 3 + "f6G7h8"
    (corpus / "short.txt").write_text(f"{mail} is short")
    (corpus / "cut.txt").write_text(f"{'x' * 185} {mail}")
    (corpus / "mail.txt").write_text(f"{sentence(99)}Write to {mail}, token {token} tells who you are.")
    config = dataclasses.replace(
        config_for(tmp_path, clean=CleanConfig(min_chars=220)),
        privacy=PrivacyConfig(scrub=("api_key", "email")),
    )
    told = "\n".join(describe(rehearse(config)))
    assert (
        f"replaced email: 1\n    such as corpus/mail.txt: the house. Write to {mail}, token\n" in f"{told}\n"
    )
    assert "such as corpus/mail.txt: , token ghp_a1B2c3... tells who you are." in told
    prepare(config)
    for name, content in tree(tmp_path / "out").items():
        assert b"jane" not in content, name
        assert token[:12].encode() not in content, name
    assert b"<EMAIL> is short" in tree(tmp_path / "out")["report.json"]
