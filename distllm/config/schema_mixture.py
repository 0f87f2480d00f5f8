"""Keys of the order in which samples of several sources are seen."""

from __future__ import annotations

from dataclasses import dataclass

from distllm.config.options import option


@dataclass(frozen=True)
class MixtureConfig:
    """How sources are mixed over the course of a run."""

    temperature: float = option(
        1.0, "sources without a weight are drawn by tokens^(1/temperature)", on_resume="identity", minimum=1.0
    )
