"""Every dashboard, every outage: a step never waits, the run goes on, and metrics.jsonl has all of it."""

import errno
import logging
import sys
import threading
import time
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
from records import EVAL, STEP

from distllm.config.schema import Config, LoggerConfig
from distllm.fsio import read_json_lines
from distllm.observe.open import build_sinks
from distllm.observe.tracked import TrackedRun

STEPS = 200
LONGEST_SECONDS = 0.1


def wandb(start, log):
    library = MagicMock()
    library.init.side_effect = start
    library.init.return_value.log.side_effect = log
    return "wandb", library


def tensorboard(start, log):
    library = MagicMock()
    library.SummaryWriter.side_effect = start
    library.SummaryWriter.return_value.add_scalar.side_effect = log
    return "torch.utils.tensorboard", library


def mlflow(start, log):
    library = MagicMock()
    library.MlflowClient.side_effect = start
    library.MlflowClient.return_value.log_metric.side_effect = log
    return "mlflow", library


def trackio(start, log):
    library = MagicMock()
    library.init.side_effect = start
    library.init.return_value.log.side_effect = log
    return "trackio", library


LOGGERS = {
    "Weights & Biases": (wandb, {"wandb": "offline"}),
    "TensorBoard": (tensorboard, {"tensorboard": True}),
    "MLflow": (mlflow, {"mlflow": "http://127.0.0.1:9"}),
    "trackio": (trackio, {"trackio": True}),
}


def later(error):
    """What a library does that works at first."""
    calls = []

    def call(*_arguments, **_options):
        calls.append(1)
        if len(calls) > 20:
            raise error

    return call


FULL = OSError(errno.ENOSPC, "No space left on device")
OUTAGES = {
    "down at the start": lambda held: (ConnectionError("connection refused"), None),
    "down in the middle": lambda held: (None, later(ConnectionError("connection reset"))),
    "disk full": lambda held: (None, later(FULL)),
    "silent at the start": lambda held: (lambda *a, **o: held.wait(), None),
    "silent in the middle": lambda held: (None, lambda *a, **o: held.wait()),
}


@pytest.mark.parametrize("outage", OUTAGES)
@pytest.mark.parametrize("name", LOGGERS)
def test_no_outage_of_a_dashboard_stops_or_delays_a_run(tmp_path, monkeypatch, caplog, name, outage):
    held = threading.Event()
    make, keys = LOGGERS[name]
    monkeypatch.setitem(sys.modules, *make(*OUTAGES[outage](held)))
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    settings = LoggerConfig(**{"wandb": "disabled", "console": False, **keys})
    file, dashboard = build_sinks(TrackedRun(Config(name="tiny", logger=settings), tmp_path, 1, "a1"), STEPS)
    dashboard._close_seconds = 0.5 if "silent" in outage else 60.0
    worst = []
    with caplog.at_level(logging.WARNING):
        for step in range(1, STEPS + 1):
            file.log_step(replace(STEP, step=step))
            began = time.thread_time()
            dashboard.log_step(replace(STEP, step=step))
            worst.append(time.thread_time() - began)
        dashboard.log_eval(EVAL)
        for sink in (file, dashboard):
            sink.close()
    told = [one.getMessage() for one in caplog.records if one.name.startswith("distllm.observe")]
    held.set()  # what wakes up now may complain, and is not listened to
    (warning,) = told
    assert max(worst) < LONGEST_SECONDS
    assert warning.startswith(f"{name} ")
    assert "metrics.jsonl has everything" in warning
    steps = [line["step"] for line in read_json_lines(tmp_path / "metrics.jsonl") if line["kind"] == "step"]
    assert steps == list(range(1, STEPS + 1))
