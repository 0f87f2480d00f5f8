"""Keys that say what raw input is and how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distllm.config.options import option

SourceKind = Literal[
    "pydocs", "text", "jsonl", "parquet", "csv", "html", "warc", "epub", "pdf",
    "pairs", "qa", "chat", "preferences", "many",
]  # fmt: skip


@dataclass(frozen=True)
class ReadConfig:
    """One source of raw documents. Paths are local or URLs (s3://, https://), files may be compressed."""

    source: SourceKind = option("pydocs", "kind of raw input; many: see data.sources", on_resume="identity")
    paths: tuple[str, ...] = option(
        (), "files, directories, globs or URLs of raw input", on_resume="identity"
    )
    text_key: str = option("text", "key (jsonl) or column (csv, parquet) of the text", on_resume="identity")
    id_key: str | None = option(
        None, "key or column of a record's id; null names it by file and offset", on_resume="identity"
    )
    fields: tuple[str, ...] = option(
        ("source", "target"), "keys or columns of both sides of a pair", on_resume="identity"
    )
    languages: tuple[str, ...] = option(
        (), "languages of both sides of a pair, as in the names of Moses files", on_resume="identity"
    )
    language: str = option("", "language of all documents (ISO 639-1); empty: unknown", on_resume="identity")
    language_key: str | None = option(None, "key or column of a record's language", on_resume="identity")
    encoding: str = option("utf-8", "encoding of text files", on_resume="identity")
    delimiter: str = option(
        "", "separator of csv columns; empty: tab in .tsv files, comma in others", on_resume="identity"
    )
    max_bytes: int | None = option(
        None,
        "stop reading after this much text; null reads all",
        unit="bytes",
        on_resume="identity",
        minimum=1,
    )
    max_document_bytes: int = option(
        64 * 2**20,
        "refuse longer lines, records and files of one document",
        unit="bytes",
        on_resume="identity",
        minimum=1,
    )
    on_bad_file: Literal["fail", "skip"] = option(
        "fail", "a damaged file: fail, or skip what follows the damage and say so", on_resume="identity"
    )
    stall_seconds: float = option(30.0, "give up a transfer that brings no byte for this long", minimum=0.1)


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
        "of equal documents, the one from the source with the lowest number is kept",
        on_resume="identity",
    )
    weight: float | None = option(
        None,
        "share in the mixture relative to the others; null follows its tokens",
        on_resume="identity",
        minimum=0.0,
    )
    max_epochs: float | None = option(
        None, "a run that would repeat this source more often is refused", minimum=0.0
    )
