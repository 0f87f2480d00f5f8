import logging
import threading
import time
from dataclasses import replace

import pytest
from records import EVAL, STEP

from distllm.observe.background import BackgroundSink
from distllm.observe.ledger import Event


class Remembering:
    """A sink that notes what it gets; ``broken`` names the method that fails, ``slow`` its seconds."""

    def __init__(self, broken=None, slow=0.0):
        self.calls, self.broken, self.slow = [], broken, slow

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, *arguments))
            time.sleep(self.slow)
            if name == self.broken:
                raise OSError("no space left on device")

        return call


def use(sink, steps=1):
    for number in range(steps):
        sink.log_step(replace(STEP, step=number))
    sink.log_eval(EVAL)
    sink.log_sample(2, 8192, "a", "b")
    sink.log_note(2, "note")
    sink.log_event(Event(1.0, 1, "done"))


def test_everything_arrives_in_order(caplog):
    inner = Remembering()
    sink = BackgroundSink("it", lambda: inner)
    use(sink, steps=3)
    sink.close()
    assert [name for name, *_ in inner.calls] == [
        "log_step", "log_step", "log_step", "log_eval", "log_sample", "log_note", "log_event", "close",
    ]  # fmt: skip
    assert inner.calls[3] == ("log_eval", EVAL)
    assert not caplog.records


@pytest.mark.parametrize("stuck", ["at the start", "in the middle"])
def test_a_server_that_never_answers_costs_a_step_next_to_nothing(stuck, caplog):
    """The longest of the calls stays far below the 100 ms that a step may lose."""
    never = threading.Event()

    class Stuck(Remembering):
        def log_eval(self, record):
            never.wait()

    def build():
        if stuck == "at the start":
            never.wait()
        return Stuck()

    sink = BackgroundSink("it", build, capacity=100, close_seconds=0.2)
    longest = 0.0
    for _ in range(500):
        began = time.thread_time()
        use(sink)
        longest = max(longest, time.thread_time() - began)
    sink.close()
    assert longest < 0.1
    assert "is abandoned" in caplog.text
    assert "too slow for" in caplog.text
    never.set()


@pytest.mark.parametrize("broken", ["build", "log_step", "log_event", "close"])
def test_any_failure_is_one_warning_and_no_more(broken, caplog):
    def build():
        if broken == "build":
            raise RuntimeError("server is down")
        return Remembering(broken)

    sink = BackgroundSink("The service", build, close_seconds=60.0)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            use(sink)
        sink.close()
        sink.close()
    (record,) = caplog.records
    assert "The service failed" in record.getMessage()
    assert "metrics.jsonl has everything" in record.getMessage()


@pytest.mark.slow
def test_records_keep_coming_after_a_failure_without_filling_memory():
    sink = BackgroundSink("it", lambda: Remembering("log_step"), capacity=10, close_seconds=60.0)
    for _ in range(1000):
        sink.log_step(STEP)
        if not sink._waiting.empty():
            time.sleep(0.0005)
    assert sink._waiting.qsize() <= 10
    sink.close()
