"""Configurations as YAML text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distllm.errors import IntegrityError


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Return a nested mapping as YAML in its own order, tuples as lists."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dict(tree)))


def from_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; interpolations stay as they are written.

    Raises:
        IntegrityError: the file is missing or is not a YAML mapping.
    """
    from omegaconf import DictConfig, OmegaConf

    try:
        loaded = OmegaConf.load(path)
    except Exception as error:  # OmegaConf lets through whatever its YAML library raises
        raise IntegrityError(
            f"cannot read {path}: {error}", where=str(path), remedy="fix the YAML, or restore the file"
        ) from error
    if not isinstance(loaded, DictConfig):
        raise IntegrityError(
            f"{path} holds no configuration", where=str(path), remedy="write keys with values, as in conf/"
        )
    content = OmegaConf.to_container(loaded, resolve=False)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}
