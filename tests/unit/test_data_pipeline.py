import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from distllm.config.schema import Config, DataConfig
from distllm.config.schema_clean import CleanConfig
from distllm.config.schema_dedup import DedupConfig
from distllm.config.schema_read import SourceConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.manifest import Manifest
from distllm.data.pipeline import pipeline_identity, prepare
from distllm.data.pipeline.report import describe, from_json
from distllm.data.shards import load_index, map_shard, split_stats, verify
from distllm.data.tokenizer import Tokenizer
from distllm.errors import DataError, StorageError, TokenizerError


def sentence(i):
    return f"Document number {i} tells of {i * i} birds, {i % 7} trees and the river behind the house. " * 3


@pytest.fixture
def corpus(tmp_path):
    directory = tmp_path / "corpus"
    directory.mkdir()
    for i in range(60):
        (directory / f"{i:03d}.txt").write_text(sentence(i), encoding="utf-8")
    (directory / "copy.txt").write_text(sentence(5) + "\r\n\r\n", encoding="utf-8")
    (directory / "short.txt").write_text("short")
    (directory / "binary.txt").write_bytes(b"\0\1")
    return directory


def config_for(tmp_path, *, out="out", seed=0, min_chars=64, tokenizer=None, **data):
    defaults = {"source": "text", "paths": (str(tmp_path / "corpus"),), "valid_fraction": 0.1}
    return Config(
        seed=seed,
        clean=CleanConfig(min_chars=min_chars),
        data=DataConfig(out=str(tmp_path / out), **{**defaults, **data}),
        tokenizer=tokenizer or TokenizerConfig(vocab_size=300),
    )


QUESTION = {"context": "text {0} has the number {0}", "question": "{1}?", "answers": ["{0}"]}
PREFERENCE = {"prompt": "text {0} has the number", "chosen": "{0} {1}", "rejected": "{1} it has"}


@pytest.mark.parametrize(
    ("source", "record", "shared"),
    [("qa", QUESTION, "context"), ("preferences", PREFERENCE, "prompt")],
)
def test_what_shares_a_context_or_a_prompt_is_held_out_together(tmp_path, source, record, shared):
    (tmp_path / "corpus").mkdir()
    asked = [(text, word) for text in range(40) for word in ("which", "what", "how")]
    lines = [json.dumps(record).replace("{0}", str(text)).replace("{1}", word) for text, word in asked]
    (tmp_path / "corpus" / "q.jsonl").write_text("\n".join(lines))
    prepare(config_for(tmp_path, source=source, min_chars=1, valid_fraction=0.3))
    for stats in split_stats(tmp_path / "out", verify(tmp_path / "out")):
        assert stats.lengths[0] <= stats.tokens / stats.documents <= stats.lengths[-1]
    tokenizer, held = Tokenizer.load(tmp_path / "out"), {}
    for split in ("train", "valid"):
        (shard,) = shards_of(tmp_path / "out", split)
        ids_M, ends_D = map_shard(tmp_path / "out", shard, np.dtype("<u2"), shared)
        texts = [tokenizer.decode(ids.tolist()) for ids in np.split(ids_M, ends_D[:-1].astype(int))]
        held[split] = set(texts)
        assert len(texts) == 3 * len(held[split])
    assert held["train"].isdisjoint(held["valid"])
    assert 3 < len(held["valid"]) < 20


def shards_of(directory, split):
    (splits,) = load_index(directory).values()
    return splits[split]


def texts_of(directory, split):
    manifest, tokenizer = Manifest.load(directory), Tokenizer.load(directory)
    texts = []
    for shard in shards_of(directory, split):
        ids_M, ends_D = map_shard(directory, shard, np.dtype(manifest.token_dtype))
        for ids_N in np.split(ids_M, ends_D[:-1].astype(int)):
            assert ids_N[0] == tokenizer.eot_id
            texts.append(tokenizer.decode(ids_N[1:].tolist()))
    return texts


def tree(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_every_document_arrives_once_and_every_refusal_is_counted(tmp_path, corpus):
    manifest = prepare(config_for(tmp_path))
    train, valid = texts_of(tmp_path / "out", "train"), texts_of(tmp_path / "out", "valid")
    assert sorted(train + valid) == sorted(sentence(i).strip("\n").rstrip() for i in range(60))
    assert 1 <= len(valid) <= 20
    total = manifest.total
    assert (total.read, total.kept) == (63, 60)
    assert total.dropped == {"duplicate": 1, "not_text": 1, "too_short": 1}
    assert total.edited == {"line_breaks": 1, "whitespace": 61}
    removed = [json.loads(line) for line in (tmp_path / "out" / "removed.jsonl").read_text().splitlines()]
    rules = {item["id"].rsplit("/")[-1]: item["rule"] for item in removed}
    same = rules.keys() & {"005.txt", "copy.txt"}  # which of the two stays is decided by their ids
    assert len(same) == 1
    assert rules == {**dict.fromkeys(same, "duplicate"), "binary.txt": "not_text", "short.txt": "too_short"}
    assert all(item["reason"] for item in removed)


def test_the_manifest_describes_what_was_written(tmp_path, corpus):
    manifest = prepare(config_for(tmp_path, shard_bytes=1024))
    assert manifest == Manifest.load(tmp_path / "out") == verify(tmp_path / "out")
    lengths_V = Tokenizer.load(tmp_path / "out").token_byte_lengths()
    for split, record in manifest.splits.items():
        texts = texts_of(tmp_path / "out", split)
        assert record.documents == len(texts)
        assert record.text_bytes == sum(len(text.encode()) for text in texts)
        ids = [map_shard(tmp_path / "out", s, np.dtype("<u2"))[0] for s in shards_of(tmp_path / "out", split)]
        assert record.tokens == sum(ids_M.size for ids_M in ids)
        assert record.text_bytes == sum(int(lengths_V[ids_M].sum()) for ids_M in ids)
    assert len(manifest.splits["train"].shards) > 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "out", "out.work"]
    top = {path.name for path in (tmp_path / "out").iterdir()}
    assert top == {
        "manifest.json",
        "index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "removed.jsonl",
        "report.json",
        "text",
    }


def test_the_same_input_gives_the_same_bytes(tmp_path, corpus):
    first = prepare(config_for(tmp_path, shard_bytes=1024))
    script = (
        "import sys; from distllm.config.schema import *; from distllm.data.pipeline import prepare\n"
        "out, corpus = sys.argv[1:]\n"
        "data = DataConfig(source='text', paths=(corpus,), valid_fraction=0.1, out=out, shard_bytes=1024)\n"
        "prepare(Config(data=data, tokenizer=TokenizerConfig(vocab_size=300)))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "again"), str(corpus)], check=True)
    assert tree(tmp_path / "out") == tree(tmp_path / "again")
    assert Manifest.load(tmp_path / "again").digest == first.digest


def test_a_document_keeps_its_split_whatever_comes_beside_it(tmp_path, corpus, monkeypatch):
    monkeypatch.chdir(tmp_path)  # ids, and with them splits, follow the paths as they are given
    here = {"paths": ("corpus",), "valid_fraction": 0.2}
    prepare(config_for(tmp_path, **here))
    valid = set(texts_of(tmp_path / "out", "valid"))
    for i in range(60, 90):
        (corpus / f"{i:03d}.txt").write_text(sentence(i))
    prepare(config_for(tmp_path, out="more", **here))
    assert len(valid) > 3
    assert valid <= set(texts_of(tmp_path / "more", "valid"))
    prepare(config_for(tmp_path, out="seed", seed=1, **here))
    assert not valid <= set(texts_of(tmp_path / "seed", "valid"))


@pytest.mark.parametrize(
    ("documents", "fraction", "valid"),
    [(1, 0.5, 0), (2, 1e-9, 1), (2, 0.5, 1), (60, 0.0, 0), (60, 1e-12, 1), (3, 0.0001, 1)],
)
def test_neither_split_is_empty_unless_it_must_be(tmp_path, corpus, documents, fraction, valid):
    paths = tuple(str(corpus / f"{i:03d}.txt") for i in range(documents))
    for seed in range(4):
        config = config_for(tmp_path, out=f"out{seed}", paths=paths, valid_fraction=fraction, seed=seed)
        splits = prepare(config).splits
        assert (splits["train"].documents, splits["valid"].documents) == (documents - valid, valid)


def test_the_tokenizer_sees_the_train_split_only(tmp_path, corpus):
    prepare(config_for(tmp_path))
    secret = "xyzzyplugh " * 4000 + "end"
    valid = texts_of(tmp_path / "out", "valid")[0]
    (file,) = [path for path in corpus.glob("0*.txt") if path.read_text().rstrip() == valid]
    before = (tmp_path / "out" / "tokenizer.json").read_bytes()
    file.write_text(secret)
    prepare(config_for(tmp_path, out="changed"))
    assert secret in texts_of(tmp_path / "changed", "valid")
    assert (tmp_path / "changed" / "tokenizer.json").read_bytes() == before


def test_an_existing_tokenizer_is_used_as_it_is(tmp_path, corpus):
    prepare(config_for(tmp_path))
    path = tmp_path / "out" / "tokenizer.json"
    manifest = prepare(config_for(tmp_path, out="second", tokenizer=TokenizerConfig(path=str(path))))
    assert (tmp_path / "second" / "tokenizer.json").read_bytes() == path.read_bytes()
    assert manifest.vocab_size == 300
    with pytest.raises(TokenizerError):
        prepare(config_for(tmp_path, out="third", tokenizer=TokenizerConfig(path="missing.json")))
    assert not (tmp_path / "third").exists()


def test_max_bytes_stops_with_the_document_that_reaches_it(tmp_path, corpus):
    size = len(sentence(0))
    manifest = prepare(config_for(tmp_path, max_bytes=4 * size + 1))
    assert manifest.total.kept == manifest.total.read == 5


def test_the_same_configuration_returns_at_once_and_another_is_refused(tmp_path, corpus, monkeypatch):
    config = config_for(tmp_path)
    manifest = prepare(config)
    seen = []
    relaxed = dataclasses.replace(config.data, seq_len=64, mask_documents=False)
    assert prepare(dataclasses.replace(config, data=relaxed), seen.append) == manifest
    assert seen == []
    with pytest.raises(DataError) as error:
        prepare(config_for(tmp_path, min_chars=9, seed=3))
    assert "seed was 0, is 3; sources.text was" in error.value.cause
    assert "tokenizer" not in error.value.cause
    assert "another data.out" in error.value.remedy
    (tmp_path / "out" / "text" / "train" / "00000.tar").unlink()
    with pytest.raises(DataError, match=r"00000\.tar .* is missing"):
        prepare(config)


def test_the_identity_leaves_out_what_does_not_change_the_content():
    base = pipeline_identity(Config())
    for data in (
        {"out": "x"}, {"seq_len": 64}, {"mask_documents": False}, {"workers": 2}, {"work": "w"},
        {"stall_seconds": 1.0}, {"on_damage": "skip"},
    ):  # fmt: skip
        assert pipeline_identity(Config(data=DataConfig(**data))) == base, data
    for data in ({"text_key": "x"}, {"max_bytes": 9}, {"valid_fraction": 0.3}, {"shard_bytes": 2048}):
        assert pipeline_identity(Config(data=DataConfig(**data))) != base, data
    for group in (
        {"clean": CleanConfig(repair=True)}, {"dedup": DedupConfig(near=True)},
        {"tokenizer": TokenizerConfig(vocab_size=999)}, {"seed": 1},
    ):  # fmt: skip
        assert pipeline_identity(Config(**group)) != base, group


def test_a_directory_with_other_things_is_not_touched(tmp_path, corpus):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match="is not a prepared dataset"):
        prepare(config_for(tmp_path))
    with pytest.raises(DataError, match="is not a prepared dataset"):
        prepare(config_for(tmp_path, out="corpus/001.txt"))
    assert tree(tmp_path / "out") == {"thesis.tex": b"precious"}
    (tmp_path / "empty").mkdir()
    assert prepare(config_for(tmp_path, out="empty")).total.kept == 60


def test_a_source_in_which_nothing_survives_is_an_error_with_its_reasons(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_bytes(b"\0")
    (tmp_path / "corpus" / "b.txt").write_text("short")
    with pytest.raises(DataError) as error:
        prepare(config_for(tmp_path))
    assert "of 2 read: 1 not_text (first:" in error.value.cause
    assert "NUL byte at offset 0); 1 too_short" in error.value.cause
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_surrogates_from_json_do_not_stop_a_preparation(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"text": sentence(i) + "\ud800"}) for i in range(9))
    )
    manifest = prepare(config_for(tmp_path, source="jsonl", paths=(str(tmp_path / "a.jsonl"),)))
    assert manifest.total.kept == manifest.total.edited["control_characters"] == 9


def test_progress_is_reported_stage_by_stage(tmp_path, corpus):
    seen = []
    prepare(config_for(tmp_path), seen.append)
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert stages == ["read", "clean", "sign", "duplicates", "refine", "tokenizer", "encode", "shards"]
    for stage in stages:
        reports = [progress for progress in seen if progress.stage == stage]
        assert reports[-1].done == reports[-1].total
        assert [r.done for r in reports] == sorted(r.done for r in reports)
        assert {r.unit for r in reports} == {"bytes"}


def test_an_interrupted_preparation_leaves_no_dataset(tmp_path, corpus):
    def interrupt(progress):
        if progress.stage == "encode":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config_for(tmp_path), interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "out.work"]
    assert prepare(config_for(tmp_path)).total.kept == 60


def test_the_report_shows_what_each_rule_did(tmp_path, corpus):
    prepare(config_for(tmp_path))
    report = json.loads((tmp_path / "out" / "report.json").read_text())["text"]
    assert (report["read"], report["kept"]) == (63, 60)
    (sample,) = report["samples"]["too_short"]
    assert (sample["sample"], sample["reason"][:12]) == ("short", "5 characters")
    lines = "\n".join(describe(from_json({"text": report})))
    assert "source text: 60 documents kept of 63 read" in lines
    assert "dropped by too_short: 1 (1.6 %)" in lines
    counts = report["languages"][""]
    assert counts["documents"] == 60
    assert f"{counts['tokens'] / counts['words']:.2f} tokens a word" in lines


def test_the_report_shows_lines_that_were_cut_out_of_documents_that_stay(tmp_path, corpus):
    footer = "All pages of this corpus end with the same line, which says nothing of them."
    (corpus / "copy.txt").unlink()
    for path in sorted(corpus.glob("0*.txt")):
        path.write_text(f"{path.read_text()}\n{footer}")
    config = dataclasses.replace(config_for(tmp_path), dedup=DedupConfig(pieces="lines"))
    prepare(config)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["text"]["edited"]["duplicate_lines"] == 59
    samples = report["text"]["samples"]["duplicate_lines"]
    assert len(samples) == 3
    assert samples[0]["reason"] == f"1 of its lines stand in other documents, the first: {footer}"
    assert f"    such as {samples[0]['id']}: {samples[0]['reason']}" in describe(from_json(report))


def test_fertility_is_told_of_each_side_of_a_pair_and_by_characters_where_there_are_no_spaces(tmp_path):
    (tmp_path / "corpus").mkdir()
    rows = "".join(f"The house has {i} rooms\t房子有{i}间屋子\n" for i in range(20))
    (tmp_path / "corpus" / "p.tsv").write_text(rows)
    prepare(config_for(tmp_path, source="pairs", min_chars=0, languages=("en", "zh")))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    languages = report["pairs"]["languages"]
    assert {name: (counts["documents"], counts["words"]) for name, counts in languages.items()} == {
        "en": (20, 100),
        "zh": (20, 140),
    }
    assert sum(counts["bytes"] for counts in languages.values()) == len(rows.encode()) - 40
    manifest = Manifest.load(tmp_path / "out")
    tokens = sum(split.tokens for split in manifest.sources["pairs"].values())
    assert sum(counts["tokens"] for counts in languages.values()) == tokens
    assert sum(split.documents for split in manifest.sources["pairs"].values()) == 20


def test_many_sources_are_read_cleaned_and_written_apart(tmp_path, corpus):
    rows = [{"body": f"{sentence(100 + i)}  "} for i in range(20)] + [{"body": sentence(3)}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "p.tsv").write_text("".join(f"word {i}\tWort {i}\n" for i in range(30)))
    sources = {
        "files": SourceConfig(source="text", paths=(str(corpus),)),
        "lines": SourceConfig(
            source="jsonl",
            paths=(str(tmp_path / "a.jsonl"),),
            text_key="body",
            clean="basic",
            priority=-1,
        ),
        "pairs": SourceConfig(source="pairs", paths=(str(tmp_path / "p.tsv"),), languages=("en", "de")),
    }
    config = config_for(tmp_path, source="many", paths=(), sources=sources)
    manifest = prepare(config)
    kept = {name: counts.kept for name, counts in manifest.counts.items()}
    assert kept == {"files": 59, "lines": 21, "pairs": 30}
    assert manifest.counts["files"].dropped["duplicate"] == 2  # its own copy, and the one of `lines`
    assert manifest.fields == {"files": ("text",), "lines": ("text",), "pairs": ("source", "target")}
    assert verify(tmp_path / "out") == manifest
    tokenizer = Tokenizer.load(tmp_path / "out")
    shard = load_index(tmp_path / "out")["pairs"]["train"][0]
    ids_M, ends_D = map_shard(tmp_path / "out", shard, np.dtype(manifest.token_dtype), "target")
    assert tokenizer.decode(ids_M[: int(ends_D[0])].tolist()).startswith("Wort ")
    assert manifest.sources["pairs"]["train"].languages == {
        "en": manifest.sources["pairs"]["train"].documents
    }


LIMITED = """
import os, resource, sys
from distllm.config.schema import *
from distllm.data.pipeline import prepare
from distllm.errors import StorageError
out, corpus, trouble = sys.argv[1:]
if trouble == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
else:
    os.makedirs(os.path.dirname(out), mode=0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)
try:
    prepare(Config(data=DataConfig(source="text", paths=(corpus,), out=out)))
except StorageError as error:
    print(error.cause)
"""


@pytest.mark.parametrize(("trouble", "cause"), [("full", "no space left"), ("forbidden", "not permitted")])
def test_a_full_or_forbidden_disk_is_named_and_left_clean(tmp_path, corpus, trouble, cause):
    out = tmp_path / "deep" / "out"
    command = [sys.executable, "-c", LIMITED, str(out), str(corpus), trouble]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert cause in result.stdout, result.stderr
    assert not out.exists()
    assert not out.with_name("out.partial").exists()
    assert StorageError.exit_code == 74
