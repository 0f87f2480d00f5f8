"""More processes on this machine for the same preparation: each walks through the same stages.

An assistant reads the configuration from the first line of its standard input and ends when that
pipe closes, so it never outlives the process that started it, however that ends. What goes wrong in
an assistant is not passed on: its tasks stay undone, and whoever takes them has the same problem.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
    helpers = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, text=True
        )
        for _ in range(count)
    ]
    try:
        for helper in helpers:
            assert helper.stdin is not None
            try:
                helper.stdin.write(json.dumps(asdict(config)) + "\n")
                helper.stdin.flush()
            except BrokenPipeError:
                continue  # it died at birth; the others do its part
        yield
    finally:
        for helper in helpers:
            helper.kill()
            helper.communicate()
