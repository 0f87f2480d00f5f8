"""Cleaning profiles by name: the files of ``conf/clean``."""

from __future__ import annotations

from distllm.config.compose import PACKAGE_CONF
from distllm.config.problems import Problems
from distllm.config.schema_clean import CleanConfig
from distllm.config.validate import build
from distllm.config.yaml import from_yaml
from distllm.errors import ConfigError
from distllm.registry import did_you_mean


def profile_names() -> list[str]:
    """Return the names of all profiles."""
    return sorted(path.stem for path in (PACKAGE_CONF / "clean").glob("*.yaml"))


def load_profile(name: str) -> CleanConfig:
    """Return the profile ``name``.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in profile_names():
        raise ConfigError(
            f"unknown cleaning profile {name!r}",
            where="clean",
            remedy=did_you_mean(name, profile_names()),
        )
    problems = Problems()
    config = build(CleanConfig, from_yaml(PACKAGE_CONF / "clean" / f"{name}.yaml"), problems)
    problems.raise_if_any()
    return config
