"""Keys that say what raw input is and how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distllm.config.options import option


@dataclass(frozen=True)
class ReadConfig:
    """One source of raw documents."""

    source: Literal["pydocs", "text", "jsonl", "many"] = option(
        "pydocs", "kind of raw input; many: see data.sources", on_resume="identity"
    )
    paths: tuple[str, ...] = option((), "files, directories or globs of raw input", on_resume="identity")
    text_key: str = option("text", "key of the text in a JSONL record", on_resume="identity")
    max_bytes: int | None = option(
        None,
        "stop reading after this much text; null reads all",
        unit="bytes",
        on_resume="identity",
        minimum=1,
    )


@dataclass(frozen=True)
class SourceConfig(ReadConfig):
    """One of many sources: how it is read, how it is cleaned, and its part in the mixture."""

    clean: str | None = option(
        None,
        "cleaning profile (conf/clean) of this source; null uses the clean group",
        on_resume="identity",
    )
    priority: int = option(
        0,
        "of equal documents the one of the source with the lowest number stays",
        on_resume="identity",
    )
    weight: float | None = option(
        None,
        "share in the mixture relative to the others; null follows its tokens",
        on_resume="identity",
        minimum=0.0,
    )
    max_epochs: float | None = option(
        None, "a run that would repeat this source more often is refused", on_resume="identity", minimum=0.0
    )
