"""Faults that a run inflicts on itself, to see that it survives them."""

from __future__ import annotations

from dataclasses import dataclass

from distllm.config.options import option


@dataclass(frozen=True)
class ChaosConfig:
    """Injected faults; see `distllm.config.faults` for what each does."""

    faults: tuple[str, ...] = option(
        (), "faults as KIND@STEP, KIND@STEP:RANK or KIND@STEP:RANKxSTEPS, such as [kill@20:1]"
    )
