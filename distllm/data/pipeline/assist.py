"""Helper processes on this machine that share the tasks of a preparation.

An assistant reads the configuration from the first line of its standard input and ends when that
pipe closes, so it never outlives the process that started it. Its errors are not reported: its tasks
remain, and the process that takes them next gets the same error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

from distllm.config.schema import Config
from distllm.machine import available_cores


@contextmanager
def assistants(config: Config, assisting: bool) -> Iterator[None]:
    """Run ``data.workers - 1`` assistants for the block, unless this process is one itself."""
    count = 0 if assisting else config.data.workers - 1
    threads = str(max(1, available_cores() // config.data.workers))
    environment = {**os.environ, "RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "distllm.data.pipeline.assistant"]
    helpers: list[subprocess.Popen[str]] = []
    try:
        for _ in range(count):
            helper = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, text=True
            )
            helpers.append(helper)
            assert helper.stdin is not None
            with suppress(BrokenPipeError):  # it died at once; the others do its part
                helper.stdin.write(json.dumps(asdict(config)) + "\n")
                helper.stdin.flush()
        yield
    finally:
        for helper in helpers:
            helper.kill()
            helper.communicate()
