"""Keys of privacy: which personal data and secrets are replaced."""

from __future__ import annotations

from dataclasses import dataclass

from distllm.config.options import option


@dataclass(frozen=True)
class PrivacyConfig:
    """What `scrub` replaces by typed placeholders."""

    scrub: tuple[str, ...] = option((), "kinds of personal data and secrets to replace", on_resume="identity")
