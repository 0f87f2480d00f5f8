"""One sink's library writes to a disk that fills up: full_disk.py NAME DISK

A process of its own, because wandb and trackio keep for the whole process where they first wrote. Prints as
JSON the longest call of a step in CPU seconds, what was told, and the lines of ``metrics.jsonl``.
"""

import contextlib
import json
import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from records import EVAL, STEP

from distllm.config.schema import Config, LoggerConfig
from distllm.observe import background
from distllm.observe.open import build_sinks
from distllm.observe.tracked import TrackedRun

KEYS = {
    "Weights & Biases": {"wandb": "offline"},
    "TensorBoard": {"tensorboard": True},
    "MLflow": {"mlflow": "file:{disk}/store"},
    "trackio": {"trackio": True},
}


class Told(logging.Handler):
    """Keeps what the sinks' thread warns of."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        """Keep one."""
        self.lines.append(record.getMessage())


def fill(directory):
    """Write until nothing fits."""
    ballast = os.open(directory / "ballast", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(ballast, bytes(4096)):
            pass
    os.close(ballast)
    assert os.statvfs(directory).f_bavail == 0


def main(name, disk):
    """Log forty steps; the disk is full from the twentieth to the thirtieth."""
    background._PROBE_SECONDS = 0.0
    told = Told()
    logging.getLogger(background.__name__).addHandler(told)
    keys = {
        key: value.format(disk=disk) if isinstance(value, str) else value for key, value in KEYS[name].items()
    }
    settings = LoggerConfig(**{"wandb": "disabled", "console": False, **keys})
    file, dashboard = build_sinks(TrackedRun(Config(name="tiny", logger=settings), disk, 1, "a1"), 40)
    longest = 0.0
    for step in range(1, 41):
        if step in (20, 30):
            wait_until(dashboard._waiting.empty)
        if step == 20:
            fill(disk)
        if step == 30:
            wait_until(lambda: told.lines)
            (disk / "ballast").unlink()
        file.log_step(replace(STEP, step=step))
        began = time.thread_time()
        dashboard.log_step(replace(STEP, step=step))
        longest = max(longest, time.thread_time() - began)
    dashboard.log_eval(EVAL)
    dashboard.close()
    file.close()
    lines = (disk / "metrics.jsonl").read_text().splitlines()
    left = [path.name for path in disk.glob(".room-*")]
    print(json.dumps({"longest": longest, "told": told.lines, "lines": len(lines), "left": left}))


def wait_until(done, seconds=60):
    """Wait for what another thread does."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
