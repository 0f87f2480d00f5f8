"""Configurations as YAML text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distllm.errors import IntegrityError


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Return a nested mapping as YAML in its own order, tuples as lists."""
    import yaml

    text: str = yaml.safe_dump(json.loads(json.dumps(tree)), sort_keys=False, allow_unicode=True)
    return text


def from_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration written by `to_yaml`.

    Raises:
        IntegrityError: the file is missing or is no YAML mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise IntegrityError(f"cannot read {path}: {error}", where=str(path)) from error
    if not isinstance(content, dict):
        raise IntegrityError(f"{path} holds no configuration", where=str(path))
    return content
