"""The process that assists a preparation (see `assist`): ``python -m distllm.data.pipeline.assistant``."""

from __future__ import annotations

import json
import os
import sys
import threading

from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.validate import build
from distllm.data.pipeline.run import prepare
from distllm.errors import DistllmError


def _main() -> int:
    problems = Problems()
    config = build(Config, json.loads(sys.stdin.readline()), problems)
    problems.raise_if_any()
    threading.Thread(target=_end_with_starter, daemon=True).start()
    try:
        prepare(config, assisting=True)
    except DistllmError as error:
        return error.exit_code
    return 0


def _end_with_starter() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(_main())
