"""Keys of privacy: which personal data and secrets are replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distllm.config.options import option

PrivacyKind = Literal[
    "email", "phone", "ip", "credit_card", "iban", "national_id", "api_key", "private_key"
]  # fmt: skip


@dataclass(frozen=True)
class PrivacyConfig:
    """What is replaced by typed placeholders such as ``<EMAIL>``."""

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
