"""A plugin of pytest that writes down what errors look like when they are printed.

``pytest -p error_examples tests/unit`` keeps, for each message of `distllm.messages`, the shortest that a
test has caused, in docs/errors.json. Temporary directories are left out of paths, and are ``DIR`` themselves.
"""

import json
import re
import socket
from pathlib import Path

from distllm import errors, messages

FILE = Path(__file__).resolve().parents[1] / "docs" / "errors.json"
_TEMPORARY = re.compile(r"/tmp/pytest-of-\w+/pytest-\d+/(popen-gw\d+/)?[\w.-]+/?")
_LONGEST = 1500
_VARYING = (
    (re.compile(r"\b(pid|kill) \d+"), r"\1 4242"),
    (re.compile(rf"\bon {re.escape(socket.gethostname())}\b"), "on n1"),
    (re.compile(r"DISTLLM_TOKEN=\S+"), "DISTLLM_TOKEN=..."),
)
"""What differs from one run of the tests to the next, and what stands for it."""


def _shortened(path):
    return "" if path[0].endswith("/") else "DIR"


def pytest_configure(config):
    config.error_examples = made = []
    plain = errors.DistllmError.__init__

    def remembering(self, *arguments, **named):
        plain(self, *arguments, **named)
        self.made_at = errors.calling_line(1)
        made.append(self)

    errors.DistllmError.__init__ = remembering


def pytest_unconfigure(config):
    kept = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    known = {message.name for message in messages.all_messages()}
    for error in config.error_examples:
        name = messages.name_of(error)
        text = _TEMPORARY.sub(_shortened, str(error)).replace(f"{FILE.parents[1]}/", "")
        for varying, fixed in _VARYING:
            text = varying.sub(fixed, text)
        if name is not None and len(text) < _LONGEST and "pytest" not in text:
            kept[name] = min(kept.get(name, text), text, key=lambda one: (len(one), one))
    kept = {name: kept[name] for name in sorted(known & kept.keys())}
    FILE.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
