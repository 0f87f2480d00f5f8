"""Small programs in the place of a scheduler's commands, and what they were called with."""

import json
import os
import shlex
import sys


class Programs:
    """A directory that is first on the PATH.

    Args:
        directory: where the programs lie.
        monkeypatch: pytest's.
    """

    def __init__(self, directory, monkeypatch):
        self.directory = directory
        self._calls = directory / "calls.jsonl"
        directory.mkdir(exist_ok=True)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def put(self, name, body="exit 0"):
        """Make a program of ``body``, in shell; every call of it is noted."""
        note = (
            f"{shlex.quote(sys.executable)} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "
            f'{name} "$@" >> {shlex.quote(str(self._calls))}'
        )
        path = self.directory / name
        path.write_text(f"#!/bin/bash\n{note}\n{body}\n")
        path.chmod(0o755)

    def calls(self, name):
        """The arguments of every call of a program, in order."""
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        return [words[1:] for words in map(json.loads, lines) if words[0] == name]
