"""The documents that benchmarks of cleaning and deduplication read."""

import json
from contextlib import ExitStack
from pathlib import Path


def texts_in_turn(paths):
    """Yield the key text of JSON lines, one line of each file in turn, until all have ended."""
    with ExitStack() as stack:
        files = [stack.enter_context(Path(path).open(encoding="utf-8")) for path in paths]
        while files:
            for stream in list(files):
                line = stream.readline()
                if line:
                    yield json.loads(line)["text"]
                else:
                    files.remove(stream)
