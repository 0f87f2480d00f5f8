"""Keys of deduplication and decontamination."""

from __future__ import annotations

from dataclasses import dataclass

from distllm.config.options import option


@dataclass(frozen=True)
class DedupConfig:
    """Which repetitions are removed."""

    documents: bool = option(True, "drop documents whose text is equal to another's", on_resume="identity")
