"""Removes secrets from texts and values that are logged, stored or sent.

Found are the user and password of a URL, its signature, tokens of known forms, values assigned to a name
such as ``api_key``, and the values of environment variables of such names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"

_USER_INFO = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_QUERY = re.compile(
    r"(?i)(?<=[?&;])([\w-]*(?:signature|credential|token|secret|password|key|sig)[\w-]*)=[^&\s]+"
)
_KNOWN_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*)"
)

_SECRET_NAME = re.compile(
    r"(?i)(?:secret|passw(?:or)?d|passphrase|credentials?|api_?key|access_?key(?:_?id)?|private_?key)$"
)
_MAYBE_SECRET_NAME = re.compile(r"(?i)(?:^|[_.-])(?:token|key|auth|pwd)$")
_ASSIGNED = re.compile(
    r"(?i)(?<![\w?&;])([\w.-]*(?:secret|passw(?:or)?d|credential|api[_-]?key|access[_-]?key|[_.-]token|^token))"
    r"(\s*[=:]\s*)([^\s,;&'\"\[\]{}]{6,})"
)
_LEAST_CHARACTERS = 8
"""Shorter values of environment variables are not treated as secrets: they would match everywhere."""
_RANDOM_CHARACTERS = 10
"""A random value has at least this many different characters; names and numbers have fewer."""


def redacted(value: Any) -> Any:
    """Return a copy of nested plain values in which secrets in texts are replaced by ``[redacted]``."""
    if isinstance(value, Mapping):
        return {
            key: REDACTED if isinstance(item, str) and _is_secret(str(key), item) else redacted(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return redact_text(value) if isinstance(value, str) else value


def redact_text(text: str) -> str:
    """Replace everything that looks like a secret, and the secrets in environment variables."""
    for name, value in os.environ.items():
        if len(value) >= _LEAST_CHARACTERS and value in text and _is_secret(name, value):
            text = text.replace(value, REDACTED)
    text = _USER_INFO.sub(REDACTED, text)
    text = _QUERY.sub(lambda found: f"{found.group(1)}={REDACTED}", text)
    text = _KNOWN_FORMS.sub(REDACTED, text)
    return _ASSIGNED.sub(lambda found: f"{found.group(1)}{found.group(2)}{REDACTED}", text)


def _is_secret(name: str, value: str) -> bool:
    """Whether a name says that the value is a secret, or allows it and the value looks random."""
    if _SECRET_NAME.search(name):
        return bool(value)
    mixed = any(map(str.isdigit, value)) and any(map(str.isalpha, value))
    return bool(_MAYBE_SECRET_NAME.search(name)) and mixed and len(set(value)) >= _RANDOM_CHARACTERS
