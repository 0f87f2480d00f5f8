"""Keys of cleaning: which rules apply, with which thresholds."""

from __future__ import annotations

from dataclasses import dataclass

from distllm.config.options import option


@dataclass(frozen=True)
class CleanConfig:
    """Rules that edit or drop a document; null turns a threshold off."""

    min_chars: int = option(
        64, "drop documents shorter than this after cleaning", on_resume="identity", minimum=0
    )
