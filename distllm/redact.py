"""Secrets taken out of what is shown to others.

A configuration has no key for a secret, so they hide in values: the user and password of a URL, its
signature, and tokens pasted into a path or a name.
"""

from __future__ import annotations

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


def redacted(value: Any) -> Any:
    """Return a copy of nested plain values in which secrets in texts are replaced by ``[redacted]``."""
    if isinstance(value, Mapping):
        return {key: redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return redact_text(value) if isinstance(value, str) else value


def redact_text(text: str) -> str:
    """Replace user information and signatures of URLs, and tokens of well-known forms."""
    text = _USER_INFO.sub(REDACTED, text)
    text = _QUERY.sub(lambda found: f"{found.group(1)}={REDACTED}", text)
    return _KNOWN_FORMS.sub(REDACTED, text)
