import io
import math
import re
from dataclasses import replace

from distllm.observe.console import HEADER_EVERY, ConsoleSink
from distllm.observe.ledger import Event
from distllm.observe.metrics import EvalRecord, StepRecord
from distllm.observe.rank_log import LogFile, Tee

STEP = StepRecord(
    step=7,
    tokens=57_344,
    loss=8.1234,
    lr=3e-4,
    grad_norm=1.5,
    tokens_per_second=4321.0,
    mfu=0.523,
    data_wait_fraction=0.0123,
    overhead_fraction=0.004,
    memory_bytes=1536 * 2**20,
    eta_seconds=3725.0,
    skipped_steps=0,
    attempt=1,
    batch_digest="1f3a",
)
EVAL = EvalRecord(step=40, tokens=327_680, loss=5.5, perplexity=244.69, bits_per_byte=2.3456, seconds=2.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def printed(*calls, stream=None, total_steps=120):
    stream = stream if stream is not None else io.StringIO()
    sink = ConsoleSink(total_steps, stream)
    for name, *arguments in calls:
        getattr(sink, name)(*arguments)
    sink.close()
    return stream.getvalue()


def test_step_line_holds_every_quantity_under_its_title():
    header, line = printed(("log_step", STEP)).splitlines()
    titles = ["step", "tokens", "loss", "lr", "grad norm", "tok/s", "MFU", "wait", "memory", "ETA"]
    values = [
        "7/120",
        "57.3k",
        "8.1234",
        "3.00e-04",
        "1.5000",
        "4.32k",
        "52.3%",
        "1.2%",
        "1.5 GiB",
        "1h02m05s",
    ]
    position = -1
    for title, value in zip(titles, values, strict=True):
        end = header.index(title, position + 1) + len(title)
        assert line[:end].endswith(value), (title, line)
        position = end


def test_lines_have_one_width_whatever_the_values():
    extreme = replace(
        STEP,
        step=120,
        tokens=999_900_000_000,
        loss=math.nan,
        grad_norm=math.inf,
        lr=0.0,
        tokens_per_second=0.0,
        mfu=None,
        data_wait_fraction=1.0,
        memory_bytes=1023 * 2**40,
        eta_seconds=999 * 3600.0,
    )
    huge = replace(STEP, loss=123456.789, grad_norm=9.9e30)
    lines = printed(("log_step", STEP), ("log_step", extreme), ("log_step", huge)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "nan" in lines[2]
    assert "inf" in lines[2]


def test_header_comes_back_every_thirty_lines():
    lines = printed(
        *[("log_step", replace(STEP, step=n)) for n in range(1, 2 * HEADER_EVERY + 2)]
    ).splitlines()
    headers = [number for number, line in enumerate(lines) if "loss" in line]
    assert headers == [0, HEADER_EVERY + 1, 2 * HEADER_EVERY + 2]


def test_evaluation_sample_and_note_stand_out():
    text = printed(
        ("log_eval", EVAL),
        ("log_sample", 40, 327_680, "The function", " returns\nNone"),
        ("log_note", 41, "resumed"),
    )
    assert text.splitlines() == [
        "== evaluation at step 40: loss 5.5000, perplexity 244.7, 2.3456 bits per byte (2.0s)",
        "== sample at step 40",
        " | The function returns",
        " | None",
        "== resumed",
    ]


def test_pipe_gets_plain_text_and_terminal_gets_colour():
    calls = (("log_eval", EVAL), ("log_step", STEP))
    plain, coloured = printed(*calls), printed(*calls, stream=Terminal())
    assert "\x1b" not in plain
    assert "\x1b[" in coloured


def test_terminal_does_not_wrap_or_read_markup():
    text = printed(
        ("log_note", 1, "x" * 200), ("log_sample", 1, 1, "[bold]", "[/x] :smile:"), stream=Terminal()
    )
    assert len(text.splitlines()) == 3
    assert "[bold][/x] :smile:" in text


def test_a_terminal_has_one_bar_with_step_loss_speed_and_time_left(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    terminal = Terminal()
    sink = ConsoleSink(120, terminal)
    assert terminal.getvalue() == ""
    for step in (7, 60):
        sink.log_step(replace(STEP, step=step))
    sink.log_note(60, "resumed")
    sink.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "grad norm" not in shown
    assert "step 60/120" in shown
    assert "loss 8.1234  4.32k tok/s  MFU 52.3%  ETA 1h02m05s" in shown
    assert "== resumed" in shown
    assert terminal.getvalue().rstrip().endswith("\x1b[2K")  # the bar is gone
    before = terminal.getvalue()
    sink.log_note(61, "after the end")
    assert "after the end" in terminal.getvalue()[len(before) :]


def test_a_terminal_has_the_bar_and_the_log_the_lines(tmp_path, capsys):
    terminal = Terminal()
    log = LogFile(tmp_path / "logs" / "rank-00000.log", terminal)
    sink = ConsoleSink(120, Tee(terminal, log))
    sink.log_step(STEP)
    sink.log_note(7, "resumed")
    sink.close()
    header, line, note = (tmp_path / "logs" / "rank-00000.log").read_text().splitlines()
    assert "grad norm" in header
    assert "7/120" in line
    assert note == "== resumed"
    assert "grad norm" not in terminal.getvalue()
    both = io.StringIO()
    ConsoleSink(120, Tee(both, log)).log_step(STEP)
    assert "7/120" in both.getvalue()
    assert len((tmp_path / "logs" / "rank-00000.log").read_text().splitlines()) == 5


def test_generated_escape_codes_never_reach_the_terminal():
    text = printed(("log_sample", 1, 1, "a", "\x1b[2J\x07\x9b31mb\tc"))
    assert not set("\x1b\x07\x9b") & set(text)
    assert "b\tc" in text


def test_each_line_is_flushed_at_once():
    class Pipe(io.StringIO):
        flushed = 0

        def flush(self):
            self.flushed = len(self.getvalue())

    pipe = Pipe()
    ConsoleSink(10, pipe).log_step(STEP)
    assert pipe.flushed == len(pipe.getvalue()) > 0


def test_the_end_says_what_became_of_the_run_and_what_to_do_next():
    def ended(kind, **options):
        stream = io.StringIO()
        sink = ConsoleSink(120, stream, run="runs/demo", **options)
        sink.log_eval(replace(EVAL, step=0, loss=8.5))
        sink.log_eval(EVAL)
        sink.log_event(Event(1.0, 1, "saved", {"step": 120}))
        sink.log_event(Event(1.0, 1, kind, {"step": 120}))
        return stream.getvalue().splitlines()[2:]

    assert ended("done") == [
        "== done at step 120, validation loss 8.5000 -> 5.5000",
        "   next: distllm evaluate run=runs/demo",
        "   next: distllm report run=runs/demo",
        "   next: distllm export run=runs/demo",
    ]
    assert ended("done", when_done=["report"])[1:] == ["   next: distllm report run=runs/demo"]
    assert ended("stopped")[1] == "   next: run the same command again: it continues from here"
    assert ended("failed") == []
