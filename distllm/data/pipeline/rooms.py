"""Temporary: what the rooms will provide."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from distllm.config.schema import Config
from distllm.data.readers import (
    SOURCES,
    _read_jsonl_file,
    _read_text_file,
    find_files,
)
from distllm.data.records import Document, Dropped
from distllm.fsio import digest_file

FIELDS = {"text": ("text",), "jsonl": ("text",), "pydocs": ("text",)}


@dataclass(frozen=True, slots=True)
class Part:
    source: str
    path: str
    fingerprint: str
    start: int = 0
    stop: int | None = None


def find_parts(name, read):
    if read.source == "pydocs" or read.max_bytes is not None:
        return [Part(name, "*", "all")], []
    suffixes = (".jsonl", ".jsonl.gz") if read.source == "jsonl" else ("",)
    found = list(find_files(read.paths, suffixes))
    dropped = [f for f in found if isinstance(f, Dropped)]
    files = sorted(f for f in found if not isinstance(f, Dropped))
    return [Part(name, str(f), digest_file(f)) for f in files], dropped


def read_part(part, read):
    if part.path == "*":
        config = Config()
        config = replace(
            config, data=replace(config.data, source=read.source, paths=read.paths, text_key=read.text_key)
        )
        size = 0
        for item in SOURCES[read.source](config):
            yield item
            if isinstance(item, Document):
                size += len(item.text.encode())
                if read.max_bytes is not None and size >= read.max_bytes:
                    return
    elif read.source == "text":
        yield _read_text_file(Path(part.path))
    else:
        yield from _read_jsonl_file(Path(part.path), read.text_key)


class Scrubber:
    def __init__(self, config):
        pass

    def scrub(self, text):
        return text, Counter()


def training_texts(pairs, config, total):
    return (text for _, text in pairs)
