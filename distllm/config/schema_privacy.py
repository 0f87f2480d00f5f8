"""Keys of privacy: which personal data and secrets are replaced, and which canaries are planted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distllm.config.options import option

PrivacyKind = Literal[
    "email", "phone", "ip", "credit_card", "iban", "national_id", "api_key", "private_key"
]  # fmt: skip


@dataclass(frozen=True)
class CanaryConfig:
    """Texts with random digits in the training split, whose exposure measures what a model memorises."""

    repeats: tuple[int, ...] = option(
        (),
        "how often each canary is planted, such as [0,1,8,64]; 0 is one that is only watched; empty: none",
        on_resume="identity",
        minimum=0,
        maximum=1_000_000,
    )
    text: str = option(
        "My access code is {}", "a canary, with {} in place of its nine digits", on_resume="identity"
    )
    space: int = option(
        1000,
        "canaries that could have been planted: an evaluation scores all of them, and an exposure is at most "
        "log2 of their number",
        on_resume="identity",
        minimum=2,
        maximum=1_000_000,
    )


@dataclass(frozen=True)
class PrivacyConfig:
    """What is replaced by typed placeholders such as ``<EMAIL>``, and what is planted."""

    scrub: tuple[PrivacyKind, ...] = option(
        (), "kinds of personal data and secrets to replace", on_resume="identity"
    )
    private_ips: bool = option(
        False, "replace addresses that are not reachable from outside too", on_resume="identity"
    )
    phone_regions: tuple[str, ...] = option(
        ("US", "GB", "FR", "DE", "ES", "IT", "CN"),
        "regions (ISO 3166) whose national phone formats are known; +CC numbers always are",
        on_resume="identity",
    )
    canaries: CanaryConfig = option(None, "texts planted to measure memorisation", factory=CanaryConfig)
