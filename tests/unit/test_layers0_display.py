import io
from types import SimpleNamespace

import pytest

from distllm import display
from distllm.display import amount, stage, stage_reporter


class Terminal(io.StringIO):
    def isatty(self):
        return True


def progress(stage, done, total=None, unit="documents", note=""):
    return SimpleNamespace(stage=stage, done=done, total=total, unit=unit, note=note)


def lines(reports, seconds_between, monkeypatch):
    """The lines printed for ``reports`` that arrive ``seconds_between`` apart."""
    now = iter(range(1000))
    monkeypatch.setattr(display.time, "monotonic", lambda: next(now) * seconds_between)
    stream = io.StringIO()
    with stage_reporter(stream) as report:
        for item in reports:
            report(item)
    return stream.getvalue().splitlines()


def test_heading_stands_alone():
    stream = io.StringIO()
    stage("1/5  Prepare", stream)
    rule, title, again = stream.getvalue().strip().splitlines()
    assert title == "1/5  Prepare"
    assert rule == again == "=" * len(rule)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (progress("x", 1_572_864, 10_485_760, "bytes"), "1.5 MiB of 10.0 MiB (15%)"),
        (progress("x", 512, None, "bytes"), "512 B"),
        (progress("x", 50, 200), "50 of 200 documents (25%)"),
        (progress("x", 12_345), "12.3k documents"),
        (progress("x", 0, 0), "0 documents"),
    ],
)
def test_amount(given, shown):
    assert amount(given) == shown


def test_log_gets_a_line_every_few_seconds_and_the_last_of_each_stage(monkeypatch):
    reports = [progress("collect", n, 12) for n in range(1, 13)] + [
        progress("encode", n, 3) for n in (1, 2, 3)
    ]
    assert lines(reports, 1.0, monkeypatch) == [
        "  collect     1 of 12 documents (8%)",
        "  collect     6 of 12 documents (50%)  1/s, ETA 6.0s",
        "  collect     11 of 12 documents (92%)  1/s, ETA 1.0s",
        "  collect     12 of 12 documents (100%)  1/s",
        "  encode      1 of 3 documents (33%)",
        "  encode      3 of 3 documents (100%)  1/s",
    ]


def test_log_does_not_repeat_a_line(monkeypatch):
    assert lines([progress("collect", 1, 1), progress("encode", 1, 1)], 0.0, monkeypatch) == [
        "  collect     1 of 1 documents (100%)",
        "  encode      1 of 1 documents (100%)",
    ]


def test_a_stage_that_ends_as_it_begins_is_told_once(monkeypatch):
    done = progress("read", 32, 32, "bytes", "2/2 parts, 2 reused")
    assert lines([done, done, progress("clean", 1, 1)], 1.0, monkeypatch) == [
        "  read        32 B of 32 B (100%)  2/2 parts, 2 reused",
        "  clean       1 of 1 documents (100%)",
    ]


def test_a_terminal_of_80_columns_shows_how_much_how_fast_and_how_long(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    now = iter(range(1000))
    monkeypatch.setattr(display.time, "monotonic", lambda: next(now) * 2.0)
    terminal = Terminal()
    with stage_reporter(terminal) as report:
        for done in (0, 107, 214):
            report(progress("duplicates", done * 2**20, 747 * 2**20, "bytes", "17/54 parts"))
    for part in ("214.0 MiB of 747.0 MiB", "MiB/s, ETA ", "17/54 parts"):
        assert part in terminal.getvalue()


def test_bytes_have_a_rate_and_the_time_that_is_left(monkeypatch):
    reports = [progress("clean", n * 2**20, 10 * 2**20, "bytes", "x") for n in (2, 4, 6, 10)]
    assert lines(reports, 8.0, monkeypatch) == [
        "  clean       2.0 MiB of 10.0 MiB (20%)  x",
        "  clean       4.0 MiB of 10.0 MiB (40%)  256.0 KiB/s, ETA 24s  x",
        "  clean       6.0 MiB of 10.0 MiB (60%)  256.0 KiB/s, ETA 16s  x",
        "  clean       10.0 MiB of 10.0 MiB (100%)  341.3 KiB/s  x",
    ]


def test_a_stage_that_has_hardly_begun_does_not_guess_its_end(monkeypatch):
    reports = [progress("read", n, 953 * 2**20, "bytes") for n in (0, 21, 2**20)]
    _, guess, told = lines(reports, 10.0, monkeypatch)
    assert guess.endswith("2 B/s")
    assert "ETA" in told


def test_note_is_shown(monkeypatch):
    assert lines([progress("clean", 3, note="7 dropped")], 0.0, monkeypatch) == [
        "  clean       3 documents  7 dropped"
    ]


def test_log_holds_no_escape_codes_and_terminal_draws_a_bar():
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        with stage_reporter(stream) as report:
            for done in (1, 2):
                report(progress("collect", done, 2, note="[red]no markup"))
    assert "\x1b" not in plain.getvalue()
    shown = terminal.getvalue()
    assert "\x1b[" in shown
    assert "━" in shown
    assert "2 of 2 documents" in shown
    assert "[red]no markup" in shown


def test_error_inside_passes_through():
    with pytest.raises(KeyError), stage_reporter(io.StringIO()):
        raise KeyError("broken")
