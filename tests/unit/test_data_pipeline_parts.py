"""Parts of the preparation, each alone: units, encoding, shards, reports, assistants."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from prepared import byte_tokenizer

from distllm.config.schema import Config, DataConfig
from distllm.config.schema_read import ReadConfig, SourceConfig
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.pipeline import assemble, prepare, sources
from distllm.data.pipeline.assemble import SplitPlan, link_shard, write_shards
from distllm.data.pipeline.documents import Output, text_bytes
from distllm.data.pipeline.encode import EncodedUnit, encode_task, open_documents
from distllm.data.pipeline.report import SourceReport, as_json, describe, from_json
from distllm.data.pipeline.run import pipeline_identity
from distllm.data.pipeline.sources import find_units, settle_sources
from distllm.data.pipeline.spool import SpoolWriter, read_documents
from distllm.data.pipeline.work import Result, WorkDirectory
from distllm.data.records import Document, Dropped
from distllm.data.shards import map_shard, token_dtype
from distllm.data.split import Splitter


@pytest.fixture
def files(tmp_path):
    for i in range(12):
        (tmp_path / f"{i:02d}.txt").write_text("x" * (10 * i + 1))
    return tmp_path


def source_of(files, **read):
    config = Config(data=DataConfig(source="text", paths=(str(files),), **read))
    (source,) = settle_sources(config)
    return source


def test_a_single_source_is_called_after_its_kind(files):
    source = source_of(files)
    assert (source.name, source.priority, source.fields) == ("text", 0, ("text",))
    assert type(source.read) is ReadConfig
    assert "paths" not in source.reading()


def test_many_sources_come_in_the_order_of_their_names_with_their_profiles(files):
    named = {
        "b": SourceConfig(source="text", paths=(str(files),), clean="web", weight=2.0),
        "a": SourceConfig(source="pairs", paths=("x.tsv",), priority=3),
    }
    config = Config(data=DataConfig(source="many", sources=named))
    first, second = settle_sources(config)
    assert (first.name, first.priority, first.fields) == ("a", 3, ("source", "target"))
    assert first.clean == config.clean
    assert second.clean.gopher.min_words == 50
    assert "weight" not in second.reading()


def test_small_files_share_a_unit_and_big_ones_do_not(files, monkeypatch):
    source = source_of(files)
    (unit,), _ = find_units(source)
    assert len(unit.parts) == 12
    assert unit.size == sum(10 * i + 1 for i in range(12))
    monkeypatch.setattr(sources, "_UNIT_BYTES", 100)
    units, _ = find_units(source)
    assert [part for unit in units for part in unit.parts] == list(find_units(source)[0][0].parts) + [
        part for unit in units[1:] for part in unit.parts
    ]
    assert all(unit.size <= 100 or len(unit.parts) == 1 for unit in units)
    monkeypatch.setattr(sources, "_UNIT_PARTS", 1)
    assert [len(unit.parts) for unit in find_units(source)[0]] == [1] * 12


def test_an_output_keeps_logs_and_counts(tmp_path):
    seen = []
    with Output(tmp_path, ("text",), seen.append) as output:
        for i in range(3):
            document = Document.from_text(f"d{i}", "ä" * i)
            output.saw(text_bytes(document))
            output.put(document if i else Dropped.of(document, "empty", "nothing in it"))
    assert seen == [0, 2, 6]
    assert output.facts(more=1) == {
        "read": 3, "kept": 2, "text_bytes": 6, "dropped": {"empty": 1}, "more": 1,
    }  # fmt: skip
    assert [document.id for document in read_documents(tmp_path)] == ["d1", "d2"]
    (line,) = (tmp_path / "removed.jsonl").read_text().splitlines()
    assert json.loads(line) == {"id": "d0", "rule": "empty", "reason": "nothing in it", "sample": ""}


def test_every_document_is_opened():
    ids_M, ends_N = open_documents(np.array([5, 6, 7]), np.array([2, 2, 3]), 0)
    assert ids_M.tolist() == [0, 5, 6, 0, 0, 7]
    assert ends_N.tolist() == [3, 4, 6]
    empty, none = open_documents(np.zeros(0, int), np.zeros(0, int), 0)
    assert (empty.size, none.size) == (0, 0)


TEXTS = ["one", "", "three documents", "ä", "five", "six six six"]


@pytest.fixture
def encoded(tmp_path):
    """The two fields of six pairs, encoded as two units."""
    work = WorkDirectory(tmp_path / "work", lambda _: None)
    byte_tokenizer().save(tmp_path)
    tokenizer = Result("t", tmp_path, "t", {"fingerprint": byte_tokenizer().fingerprint})
    config = Config(data=DataConfig(source="pairs", paths=("x",)))
    (source,) = settle_sources(config)
    tasks = []
    for number, rows in enumerate((TEXTS[:4], TEXTS[4:])):
        directory = tmp_path / f"refined{number}"
        directory.mkdir()
        with SpoolWriter(directory, source.fields) as spool:
            for row, text in enumerate(rows):
                spool.add(Document(f"{number}.{row}", {"source": text, "target": text.upper()}, "en"))
        refined = Result(str(number), directory, str(number), {"text_bytes": 10})
        tasks.append(encode_task(sources.Unit(source, (), 1), refined, Splitter(0, 0), tokenizer))
    return work.run("encode", tasks)


def test_encoded_units_are_read_back_by_ranges(encoded):
    tokenizer = byte_tokenizer()
    unit = EncodedUnit(encoded[0].directory, "train", token_dtype(tokenizer.vocab_size))
    assert unit.ids(1, 3) == ["0.1", "0.2"]
    first, ends_N = unit.ends("source", 1, 3)
    ids_M = unit.tokens("source", first, ends_N[-1])
    assert tokenizer.decode(ids_M.tolist()) == "three documents"
    assert ends_N.tolist() == [0, len("three documents")]
    assert unit.lengths().tolist() == [2 * len(text.encode()) for text in TEXTS[:4]]
    assert unit.ends("target", 0, 0)[1].size == 0
    facts = encoded[0].facts["splits"]
    assert facts["valid"] == {}
    assert facts["train"]["en"]["documents"] == 4
    assert facts["train"]["en"]["words"] == 8


@pytest.mark.parametrize("shard_bytes", [1, 20, 40, 1000])
def test_shards_hold_all_documents_across_units(tmp_path, encoded, shard_bytes):
    tokenizer = byte_tokenizer()
    dtype = token_dtype(tokenizer.vocab_size)
    plan = SplitPlan("pairs", "train", ("source", "target"), tuple(encoded), dtype, shard_bytes, "f")
    ((*results,),) = write_shards(WorkDirectory(tmp_path / "work", lambda _: None), [plan])
    texts = {"source": [], "target": []}
    for result in results:
        shard = link_shard(result, tmp_path / "out")
        for field, found in texts.items():
            ids_M, ends_D = map_shard(tmp_path / "out", shard, dtype, field)
            starts = [0, *ends_D.tolist()]
            found += [tokenizer.decode(ids_M[a:b].tolist()) for a, b in pairwise(starts)]
    assert texts == {"source": TEXTS, "target": [text.upper() for text in TEXTS]}
    assert (len(results) == 1) == (shard_bytes == 1000)


def test_where_no_links_can_be_made_shards_are_copied(tmp_path, encoded, monkeypatch):
    plan = SplitPlan("pairs", "train", ("source", "target"), tuple(encoded), np.dtype("<u2"), 1000, "f")
    (((result,)),) = write_shards(WorkDirectory(tmp_path / "work", lambda _: None), [plan])

    def refuse(*_):
        raise OSError(assemble.errno.EXDEV, "another disk")

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    shard = link_shard(result, tmp_path / "out")
    copied = tmp_path / "out" / shard.record.path
    assert copied.read_bytes() == (result.directory / shard.record.path).read_bytes()
    assert copied.stat().st_nlink == 1
    monkeypatch.setattr(assemble, "_NO_LINKS", ())
    with pytest.raises(OSError, match="another disk"):
        link_shard(result, tmp_path / "elsewhere")


def test_a_report_survives_json_and_reads_well():
    report = SourceReport(read=10, kept=7, edited=Counter(nfc=2), replaced=Counter(email=3))
    for i in range(5):
        report.refuse(Dropped(f"d{i}", "too_short" if i < 4 else "brace", "because", "text"))
    report.languages["de"] = Counter(documents=7, words=70, tokens=140, bytes=420)
    assert len(report.samples["too_short"]) == 3
    again = from_json(json.loads(json.dumps(as_json({"wiki": report}, str.strip))))
    assert again == {"wiki": report}
    assert describe(again) == [
        "source wiki: 7 documents kept of 10 read",
        "  dropped by too_short: 4 (40.0 %)",
        "    such as d0: because",
        "  dropped by brace: 1 (10.0 %)",
        "    such as d4: because",
        "  edited by nfc: 2",
        "  replaced email: 3",
        "  language de: 7 documents, 140 tokens, 2.00 tokens a word, 3.00 bytes a token",
    ]


@pytest.mark.slow
def test_assistants_die_with_the_process_that_started_them(tmp_path):
    script = (
        "import sys, time\n"
        "from distllm.config.schema import Config, DataConfig\n"
        "from distllm.data.pipeline.assist import assistants\n"
        f"config = Config(data=DataConfig(source='text', paths=({str(tmp_path)!r},), out='x', workers=3))\n"
        "with assistants(config, False):\n"
        "    print('started', flush=True)\n"
        "    time.sleep(60)\n"
    )
    (tmp_path / "pipe").mkdir()
    starter = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=tmp_path / "pipe"
    )
    assert starter.stdout.readline() == "started\n"
    children = assistants_of(starter.pid)
    assert len(children) == 2
    os.kill(starter.pid, signal.SIGKILL)
    starter.wait()
    deadline = time.monotonic() + 20
    while any(map(is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, children))


def assistants_of(pid):
    import psutil

    return [child.pid for child in psutil.Process(pid).children()]


def is_alive(pid):
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_an_error_is_met_by_whoever_takes_the_task_and_told_once(tmp_path, capfd):
    from distllm.errors import DataError

    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b broken")
    data = DataConfig(
        source="jsonl", paths=(str(tmp_path / "a.jsonl.gz"),), out=str(tmp_path / "o"), workers=2
    )
    with pytest.raises(DataError, match="is damaged"):
        prepare(Config(data=data))
    assert "Traceback" not in capfd.readouterr().err


def test_the_backend_changes_neither_a_byte_nor_the_identity(tmp_path):
    lines = [json.dumps({"text": f"document {n} of the cat's mat " * 4}) for n in range(80)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    outs = []
    for backend in ("tokenizers", "gigatoken"):
        data = DataConfig(source="jsonl", paths=(str(tmp_path / "a.jsonl"),), out=str(tmp_path / backend))
        config = Config(data=data, tokenizer=TokenizerConfig(vocab_size=300, backend=backend))
        prepare(config)
        assert "tokenizer.backend" not in pipeline_identity(config)
        out = tmp_path / backend
        outs.append({str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*") if f.is_file()})
    assert outs[0] == outs[1]


def test_eot_stands_before_each_document_and_the_type_stays():
    ids_M, ends_N = open_documents(np.array([5, 6, 7], dtype=np.uint16), np.array([0, 2, 2, 3]), 9)
    assert (ids_M.tolist(), ends_N.tolist()) == ([9, 9, 5, 6, 9, 9, 7], [1, 4, 5, 7])
    assert ids_M.dtype == np.uint16
    nothing_M, none_N = open_documents(np.zeros(0, dtype=np.uint16), np.zeros(0, dtype=np.int64), 9)
    assert (nothing_M.size, none_N.size) == (0, 0)
