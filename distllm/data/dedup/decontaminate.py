"""Dropping documents that share a run of words with an evaluation set.

The test is that of GPT-3 (Brown et al. 2020, appendix C): an overlap of 13 words, after case folding
and without punctuation. An evaluation item of fewer words counts if all of it stands in a document.

Shapes: G n-grams of a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distllm.data.dedup.stored import stored_documents
from distllm.data.manifest import MANIFEST_FILE, Manifest
from distllm.data.records import Document, Dropped
from distllm.data.shingles import hash_ngrams, hash_words, words_of
from distllm.data.split import VALID
from distllm.errors import DataError
from distllm.fsio import digest_bytes, digest_file

CONTAMINATED = "contaminated"
_MIN_WORDS = 5
_JSONL = (".jsonl", ".ndjson")


class Decontaminator:
    """Drops documents that overlap with evaluation sets; made once, used by every process.

    Args:
        paths: text files, JSON lines, or dataset directories (their valid split).
        ngram: how many consecutive words may not be shared.
    """

    def __init__(self, paths: Sequence[str], ngram: int) -> None:
        self._paths = [Path(path) for path in paths]
        self._ngram = ngram

    @cached_property
    def digest(self) -> str:
        """Digest of everything that decisions depend on: the evaluation sets and the length of a run.

        Raises:
            DataError: an evaluation set is missing.
        """
        parts = [f"{self._ngram}", *(_content_digest(path) for path in self._paths)]
        return digest_bytes("\n".join(parts).encode())

    def __call__(self, document: Document) -> Document | Dropped:
        """Return ``document``, or why it is dropped."""
        if not self._paths:
            return document
        words = words_of(document.text)
        words_N = hash_words(words)
        for size, (grams, sets) in self._grams.items():
            found_G = np.isin(hash_ngrams(words_N, size), grams) if len(words) >= size else np.zeros(0, bool)
            if found_G.any():
                place = int(found_G.argmax())
                gram = hash_ngrams(words_N, size)[place]
                name = self._paths[sets[int(np.searchsorted(grams, gram))]]
                shared = " ".join(words[place : place + size])
                return Dropped.of(document, CONTAMINATED, f"shares {shared!r} with {name}")
        return document

    @cached_property
    def _grams(self) -> Mapping[int, tuple[NDArray[np.uint64], NDArray[np.int64]]]:
        """By length of the run: the hashes of all runs in ascending order, and the set of each."""
        found: dict[int, dict[int, int]] = {}
        for number, path in enumerate(self._paths):
            for text in _texts(path):
                words_N = hash_words(words_of(text))
                if words_N.size >= _MIN_WORDS:
                    size = min(self._ngram, words_N.size)
                    runs = found.setdefault(size, {})
                    for gram in hash_ngrams(words_N, size).tolist():
                        runs.setdefault(gram, number)
        return {size: _sorted(runs) for size, runs in sorted(found.items(), reverse=True)}


def _sorted(runs: Mapping[int, int]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    grams = np.fromiter(runs, dtype=np.uint64, count=len(runs))
    sets = np.fromiter(runs.values(), dtype=np.int64, count=len(runs))
    order = np.argsort(grams)
    return grams[order], sets[order]


def _content_digest(path: Path) -> str:
    if path.is_file():
        return digest_file(path)
    if (path / MANIFEST_FILE).is_file():
        return Manifest.load(path).digest
    raise DataError(
        f"the evaluation set {path} is neither a file nor a dataset",
        where="dedup.decontaminate",
        remedy="give text files, JSON lines, or dataset directories",
    )


def _texts(path: Path) -> Iterator[str]:
    """Yield the texts of an evaluation set: every string of a JSON line, or every line of a text."""
    if path.is_dir():
        for document in stored_documents(path, (VALID,)):
            yield from document.fields.values()
        return
    with path.open("rb") as stream:
        for number, content in enumerate(stream, 1):
            try:
                line = content.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"line {number} of the evaluation set {path} is not UTF-8: {error}",
                    where=f"{path}:{number}",
                    remedy="convert the file to UTF-8",
                ) from error
            if path.name.endswith(_JSONL):
                yield from _strings(_record(path, number, line))
            else:
                yield line


def _record(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line) if line.strip() else None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"line {number} of the evaluation set {path} is not JSON: {error}",
            where=f"{path}:{number}",
            remedy="correct the line",
        ) from error


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
