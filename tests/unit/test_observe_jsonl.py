import errno
import json
import math
import mmap
import os
from dataclasses import replace

import pytest

from distllm.config.schema import Config, LoggerConfig
from distllm.errors import DataError, StorageError
from distllm.observe.console import ConsoleSink
from distllm.observe.metrics import EvalRecord, StepRecord, memory_bytes
from distllm.observe.open import build_sinks
from distllm.observe.sinks import JsonlSink, last_attempt, last_steps, read_metrics
from distllm.observe.tracked import TrackedRun

STEP = StepRecord(
    step=1,
    tokens=4096,
    loss=9.25,
    lr=1e-3,
    grad_norm=2.5,
    tokens_per_second=1234.5,
    mfu=0.41,
    data_wait_fraction=0.002,
    overhead_fraction=0.004,
    memory_bytes=3 * 2**30,
    eta_seconds=90.0,
    skipped_steps=0,
    attempt=1,
    batch_digest="1f3a",
)
EVAL = EvalRecord(step=1, tokens=4096, loss=9.0, perplexity=8103.1, bits_per_byte=3.1, seconds=1.5)


def steps(sink, attempt, numbers, loss):
    for number in numbers:
        sink.log_step(replace(STEP, step=number, tokens=4096 * number, attempt=attempt, loss=loss))


def test_records_come_back_as_written(tmp_path):
    sink = JsonlSink(tmp_path / "run", attempt=1)
    sink.log_step(STEP)
    sink.log_eval(EVAL)
    sink.close()
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert metrics.steps == (STEP,)
    assert metrics.evals == (EVAL,)


def test_every_line_is_strict_json_keyed_by_step_tokens_and_attempt(tmp_path):
    sink = JsonlSink(tmp_path, attempt=3)
    sink.log_step(replace(STEP, loss=math.nan, grad_norm=math.inf, attempt=3))
    sink.log_eval(EVAL)
    sink.log_sample(1, 4096, "def", " f(x)")
    sink.log_note(1, "resumed")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = [
        json.loads(line, parse_constant=refuse)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["kind"] for line in lines] == ["attempt", "step", "eval", "sample", "note"]
    assert {line["attempt"] for line in lines} == {3}
    assert all((line["step"], line["tokens"]) == (1, 4096) for line in lines[1:4])


def test_non_finite_numbers_survive(tmp_path):
    JsonlSink(tmp_path, 1).log_step(replace(STEP, loss=math.nan, grad_norm=-math.inf, lr=math.inf, mfu=None))
    (record,) = read_metrics(tmp_path / "metrics.jsonl").steps
    assert math.isnan(record.loss)
    assert (record.grad_norm, record.lr, record.mfu) == (-math.inf, math.inf, None)


def test_newest_attempt_of_a_step_wins_and_old_lines_stay(tmp_path):
    first = JsonlSink(tmp_path, 1)
    steps(first, 1, range(1, 6), loss=1.0)
    first.log_eval(EVAL)
    second = JsonlSink(tmp_path, 2)
    steps(second, 2, range(4, 8), loss=2.0)
    second.log_eval(replace(EVAL, loss=5.0))
    steps(first, 1, [7], loss=3.0)  # an old attempt that is slow to die must not win

    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r.step, r.attempt, r.loss) for r in metrics.steps] == [
        (1, 1, 1.0),
        (2, 1, 1.0),
        (3, 1, 1.0),
        (4, 2, 2.0),
        (5, 2, 2.0),
        (6, 2, 2.0),
        (7, 2, 2.0),
    ]
    assert [r.loss for r in metrics.evals] == [5.0]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2 + 5 + 4 + 1 + 2


def test_steps_repeated_after_a_rewind_within_an_attempt_take_the_last_line(tmp_path):
    sink = JsonlSink(tmp_path, 1)
    steps(sink, 1, range(1, 6), loss=1.0)
    sink.log_eval(replace(EVAL, step=4, loss=1.0))
    steps(sink, 1, range(3, 6), loss=2.0)
    sink.log_eval(replace(EVAL, step=4, loss=2.0))
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r.step, r.loss) for r in metrics.steps] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]
    assert [(r.step, r.loss) for r in metrics.evals] == [(4, 2.0)]


def test_the_last_step_of_each_attempt_is_the_last_line_and_has_a_time(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_steps(path) == {}
    first = JsonlSink(tmp_path, 1)
    steps(first, 1, [1, 2, 3, 2], loss=1.0)
    JsonlSink(tmp_path, 2)
    steps(JsonlSink(tmp_path, 3), 3, [2, 3, 4], loss=1.0)
    with path.open("a") as stream:
        stream.write('{"kind": "step", "attempt": 4, "step": 9}\n')  # of a version that kept no time
    found = last_steps(path)
    assert {attempt: last.step for attempt, last in found.items()} == {1: 2, 3: 4}
    assert 1.6e9 < found[1].time <= found[3].time


@pytest.mark.parametrize("kept", [1, 40, 200_000])
def test_line_torn_by_a_kill_is_dropped_and_the_next_attempt_goes_on(tmp_path, kept):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(tmp_path, 1)
    sink.log_note(0, "x" * 150_000)
    steps(sink, 1, [1], loss=1.0)
    whole = path.read_text()
    path.write_text(whole + '{"kind": "note", "text": "' + "x" * kept)
    assert [r.step for r in read_metrics(path).steps] == [1]

    steps(JsonlSink(tmp_path, 2), 2, [2], loss=1.0)
    assert path.read_text().startswith(whole)
    assert [r.step for r in read_metrics(path).steps] == [1, 2]


def test_file_that_is_one_torn_line_becomes_empty(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind')
    JsonlSink(tmp_path, 1)
    assert last_attempt(path) == 1


def test_last_attempt_counts_attempts_that_died_before_their_first_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_attempt(path) == 0
    JsonlSink(tmp_path, 1).log_step(STEP)
    JsonlSink(tmp_path, 2)
    assert last_attempt(path) == 2


@pytest.mark.parametrize(
    "content",
    ["not json\n", "[1, 2]\n", '{"kind": "step"}\n', '{"kind": "step", "attempt": 1, "step": 1, "new": 2}\n'],
)
def test_damaged_file_is_a_data_error_that_names_it(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"metrics|record") as caught:
        read_metrics(path)
    assert "metrics.jsonl" in str(caught.value)


def test_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_sample_is_also_a_text_file(tmp_path):
    JsonlSink(tmp_path, 1).log_sample(100, 4096, "Zażółć", " gęślą")
    assert (tmp_path / "samples" / "step-000000100.txt").read_text(encoding="utf-8") == "Zażółć gęślą\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_directory_is_a_storage_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError):
        JsonlSink(tmp_path / "run", 1)


def test_full_disk_is_a_storage_error(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="no space"):
        JsonlSink(tmp_path, 1)


def test_lines_wait_for_room_on_a_full_disk_and_keep_their_order(tmp_path, monkeypatch, caplog):
    sink = JsonlSink(tmp_path, 1)
    whole, full = os.write, True

    def write(descriptor, content):
        if not full:
            return whole(descriptor, content)
        whole(descriptor, content[:7])  # what still fits
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("distllm.fsio.os.write", write)
    steps(sink, 1, [1, 2], loss=3.0)
    sink.log_sample(2, 1, "a", "b")
    full = False
    steps(sink, 1, [3], loss=2.0)
    sink.close()
    assert [record.step for record in read_metrics(tmp_path / "metrics.jsonl").steps] == [1, 2, 3]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_lines_that_never_found_room_are_counted_at_the_end(tmp_path, caplog):
    sink = JsonlSink(tmp_path, 1)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    steps(sink, 1, [1, 2], loss=3.0)
    sink.close()
    assert "2 lines of" in caplog.text


def test_sinks_are_those_of_the_configuration(tmp_path):
    def kinds(**logger):
        run = TrackedRun(Config(logger=LoggerConfig(**logger)), tmp_path)
        return [type(sink) for sink in build_sinks(run, total_steps=10)]

    assert kinds(console=True) == [JsonlSink, ConsoleSink]
    assert kinds(console=False) == [JsonlSink]


def test_memory_counts_no_page_of_a_file(tmp_path):
    (tmp_path / "library").write_bytes(b"x" * 64 * 2**20)
    before = memory_bytes()
    with (
        (tmp_path / "library").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages,
    ):
        assert pages.find(b"y") == -1  # every page was read
        assert memory_bytes() - before < 16 * 2**20


def test_memory_follows_an_allocation():
    before = memory_bytes()
    # Straight from the kernel: the allocator may have kept freed memory of other tests to reuse.
    with mmap.mmap(-1, 64 * 2**20) as block:
        block.write(b"x" * len(block))
        grown = memory_bytes() - before
    assert 60 * 2**20 < grown < 140 * 2**20
