"""What people read of a ledger: every number of the account, every event as a sentence."""

import json

import pytest

from distllm.cli import main
from distllm.observe.goodput import CATEGORIES, LastStep
from distllm.observe.ledger import KINDS, Event
from distllm.observe.logbook import read_logbook

T0 = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC
SAMPLES = {"promised": 320, "seen": 288, "trained": 272, "skipped": 16, "excluded": 32, "damaged": 0}
EVENTS = [
    Event(T0, 1, "attempt", {"host": "n1", "pid": 7, "world_size": 2}),
    Event(T0 + 2, 1, "resumed", {"step": 0}),
    Event(T0 + 12, 1, "progress", {"first": 0, "step": 10, "seconds": {"productive": 10.0}}),
    Event(T0 + 12, 1, "saved", {"step": 5, "samples": {}}),
    Event(T0 + 12, 1, "saved", {"step": 10, "samples": {}}),
    Event(
        T0 + 13,
        1,
        "skipped",
        {
            "step": 11,
            "reason": "non_finite",
            "loss": "nan",
            "grad_norm": 2.5,
            "samples": [160, 176],
            "ranks": [1],
        },
    ),
    Event(T0 + 14, 1, "corruption", {"step": 12, "ranks": [0], "what": "the weights changed"}),
    Event(T0 + 15, 1, "rewind", {"step": 12, "to": 10, "excluded": [160, 192], "why": "a | streak"}),
    Event(T0 + 18, 1, "killed", {"rank": 1, "signal": "SIGKILL"}),
    Event(T0 + 22, 2, "attempt", {"host": "n2", "pid": 8, "world_size": 1}),
    Event(T0 + 24, 2, "resumed", {"step": 10}),
    Event(T0 + 34, 2, "progress", {"first": 10, "step": 20, "seconds": {"productive": 10.0}}),
    Event(T0 + 34, 2, "saved", {"step": 20, "samples": SAMPLES}),
    Event(T0 + 34, 2, "done", {"step": 20, "samples": SAMPLES}),
]
KNOWN = {1: LastStep(13, T0 + 17)}


def book(events=EVENTS, known=KNOWN):
    return read_logbook("probe", events, known)


def test_the_timeline_tells_every_event_in_order():
    assert [(entry.time - T0, entry.attempt, entry.text) for entry in book().timeline] == [
        (0, 1, "attempt 1 on n1 (pid 7), 2 ranks"),
        (2, 1, "begins"),
        (12, 1, "saved 2 times, steps 5 to 10"),
        (13, 1, "skipped step 11: non_finite, loss nan, gradient norm 2.5, samples 160 to 175, on rank 1"),
        (14, 1, "corrupted memory on rank 0 after step 12: the weights changed"),
        (15, 1, "back from step 12 to 10: a | streak; samples 160 to 191 are excluded"),
        (18, 1, "rank 1 was killed by SIGKILL"),
        (22, 2, "attempt 2 on n2 (pid 8), 1 rank"),
        (24, 2, "continues from step 10; 3 steps to be taken again"),
        (34, 2, "saved step 20"),
        (34, 2, "done at step 20"),
    ]


def test_the_text_has_every_number_of_the_account():
    text, found = book().text(), book().account
    assert (
        "run probe: step 20 after 2 attempts and 34s, from 2026-09-21 14:13:20 to 2026-09-21 14:13:54" in text
    )
    for name in CATEGORIES:
        (row,) = [line for line in text.splitlines() if line.startswith(f"  {name} ")]
        assert f"{found.seconds[name] / found.wall:.1%}" in row
    assert f"goodput {found.goodput:.1%}, effective training time (ETTR) {found.ettr:.1%}" in text
    assert "1 failure, mean time to failure (MTTF)" in text
    assert f"{found.lost_steps} steps lost; restarts: 1 x killed by SIGKILL" in text
    assert "samples: 320 promised = 272 trained + 16 skipped + 32 excluded + 0 damaged\n" in text


def test_a_gap_in_the_samples_stands_out():
    events = [*EVENTS[:-1], Event(T0 + 34, 2, "stopped", {"samples": {**SAMPLES, "trained": 270}})]
    assert "+ 0 damaged, 2 UNACCOUNTED FOR" in book(events).text()


def test_the_markdown_is_tables_whose_cells_no_sentence_breaks():
    markdown = book().markdown()
    assert markdown.startswith("# Logbook of probe\n")
    rows = [line.replace("\\|", "") for line in markdown.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows if "2026" in row} == {4}
    assert {row.count("|") for row in rows[2:12]} == {5}
    assert "a \\| streak" in markdown


@pytest.mark.parametrize("kind", sorted(KINDS - {"progress"}))
def test_an_event_that_says_little_is_told_all_the_same(kind):
    (entry,) = book([Event(T0, 1, kind, {})], {}).timeline
    assert entry.text
    assert book([Event(T0, 1, kind, {"rank": 3, "why": "this"})], {}).markdown()


def test_what_the_supervisor_says_is_told_with_its_particulars():
    slow = {"rank": 3, "host": "n7", "seconds": 0.3, "typical": 0.1}
    events = [
        Event(T0, 1, "hang", {"seconds": 12.3456, "cause": "rank 1 on n3 is stopped", "ranks": [1]}),
        Event(T0 + 1, 1, "restart", {"restart": 1, "of": 3}),
        Event(T0 + 2, 1, "straggler", slow),
        Event(T0 + 3, 1, "save_failed", {"why": "no space left", "seconds": 12.3456}),
    ]
    assert [entry.text for entry in book(events, {}).timeline] == [
        "hangs: rank 1 on n3 is stopped",
        "the ranks are started again (1 of 3)",
        "rank 3 on n7 takes 3.0 times as long as others",
        "save failed: why no space left, seconds 12.35",
    ]


@pytest.fixture
def run_dir(tmp_path):
    directory = tmp_path / "runs" / "probe"
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text("name: probe\n")
    lines = [{"time": e.time, "attempt": e.attempt, "kind": e.kind, **e.fields} for e in EVENTS]
    (directory / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    step = {"kind": "step", "attempt": 1, "step": 13, "time": T0 + 17}
    (directory / "metrics.jsonl").write_text(json.dumps(step) + "\n")
    return directory


def test_the_command_prints_it_and_writes_the_logbook_on_request(run_dir, capsys):
    runs_dir = f"runs_dir={run_dir.parent}"
    assert main(["ledger", "run=probe", runs_dir]) == 0
    assert book().text() in capsys.readouterr().out
    assert not (run_dir / "logbook.md").exists()
    assert main(["ledger", "run=probe", runs_dir, "logbook=true"]) == 0
    assert (run_dir / "logbook.md").read_text() == book().markdown()
    assert "logbook.md" in capsys.readouterr().out


def test_a_run_without_a_ledger_or_an_event_is_an_error_with_a_remedy(run_dir, capsys):
    (run_dir / "ledger.jsonl").write_text("")
    assert main(["ledger", "run=probe", f"runs_dir={run_dir.parent}"]) == 65
    (run_dir / "ledger.jsonl").unlink()
    assert main(["ledger", "run=probe", f"runs_dir={run_dir.parent}"]) == 65
    assert capsys.readouterr().err.count("distllm train") == 2
    assert main(["ledger", "run=other", f"runs_dir={run_dir.parent}"]) == 64
    assert main(["ledger"]) == 64
