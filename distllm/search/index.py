"""A search index: rankings of passages by words (BM25) and by vectors, fused into one.

Its directory holds ``manifest.json`` (the model, the texts, digests of all files), ``passages.jsonl``
(the texts), ``vectors.faiss`` (faiss's own format) and ``words.safetensors`` (BM25).

Shapes: K places of a ranking, P passages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.numpy

from distllm.errors import ConfigError, DataError, IntegrityError
from distllm.evaluate.retrieval import BM25, VectorIndex
from distllm.fsio import digest_bytes, read_json
from distllm.search.corpus import read_passages
from distllm.search.encoder import Origin, TextEncoder
from distllm.search.snippets import snippet

FORMAT = 1
MANIFEST, PASSAGES, VECTORS, WORDS = "manifest.json", "passages.jsonl", "vectors.faiss", "words.safetensors"
RRF_K = 60
"""Added to each rank before its reciprocal is taken (Cormack, Clarke & Büttcher 2009)."""
DEPTH = 100
"""Places of each ranking that are fused, unless more results are wanted."""

Mode = Literal["hybrid", "vectors", "words"]


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that was found, with its best passage.

    Attributes:
        title: name of the document.
        score: sum of the reciprocal ranks of the passage.
        snippet: the part of the passage that is shown.
        matches: [begin, end) of each word of the query in the snippet.
        passage: the whole passage.
    """

    title: str
    score: float
    snippet: str
    matches: list[tuple[int, int]]
    passage: str


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of an index.

    Raises:
        ConfigError: there is none.
        DataError: it cannot be read, or is of another version.
    """
    file = directory / MANIFEST
    if not file.is_file() or not (directory / PASSAGES).exists():
        raise ConfigError(
            f"{directory} holds no search index",
            where=str(directory),
            remedy=f"make one: distllm search build corpus=FOLDER run=NAME out={directory}",
        )
    try:
        manifest: dict[str, Any] = read_json(file)
    except IntegrityError as error:
        raise error.recast(DataError, where=str(file), remedy=_rebuild(directory)) from error
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"the index is of format {manifest.get('format')!r}, this version reads {FORMAT}",
            where=str(file),
            remedy=_rebuild(directory),
        )
    return manifest


def model_of(manifest: dict[str, Any]) -> Origin:
    """Return where the model of an index was when the index was built."""
    model = manifest["model"]
    return Origin(model["kind"], model["path"], model["step"])


class SearchIndex:
    """An index in memory, with the model that made it.

    Args:
        directory: of the index.
        encoder: the model.

    Raises:
        ConfigError: there is no index, or it was made with another model.
        DataError: a file of it is damaged.
        MissingDependency: faiss is not installed.
    """

    def __init__(self, directory: Path, encoder: TextEncoder) -> None:
        manifest = read_manifest(directory)
        _require_same(manifest, encoder, directory)
        contents = {name: _read(directory, name, facts) for name, facts in manifest["files"].items()}
        self.encoder = encoder
        self._passages = read_passages(contents[PASSAGES])
        self._vectors = VectorIndex.from_bytes(contents[VECTORS])
        self._words = BM25.from_arrays(safetensors.numpy.load(contents[WORDS]))

    @property
    def documents(self) -> list[str]:
        """Names of the documents, in their order."""
        return list(dict.fromkeys(passage.document for passage in self._passages))

    def hits(self, query: str, top: int, mode: Mode = "hybrid") -> list[Hit]:
        """Return the ``top`` documents for a query, best first.

        Raises:
            ConfigError: the query is empty.
        """
        if not query.strip():
            raise ConfigError("the query is empty", where="text", remedy="say what you look for")
        depth = min(max(DEPTH, top), len(self._passages))
        rankings = []
        if mode != "vectors":
            rankings.append(self._words.matching(query, depth).tolist())
        if mode != "words":
            found_K = self._vectors.search(self.encoder.embed([query]), depth)[0]
            rankings.append(found_K[found_K >= 0].tolist())
        marked = self._words.highlighted_words(query)
        best: dict[str, Hit] = {}
        for place, score in fuse(rankings):
            passage = self._passages[place]
            if passage.document not in best:
                best[passage.document] = Hit(
                    passage.document, score, *snippet(passage.text, marked), passage.text
                )
                if len(best) == top:
                    break
        return list(best.values())

    def search(self, query: str, top: int) -> list[dict[str, Any]]:
        """Return `hits` as plain values."""
        return [asdict(hit) for hit in self.hits(query, top)]


def fuse(rankings: Iterable[list[int]]) -> list[tuple[int, float]]:
    """Return passages and scores, the sum of 1 / (60 + rank) over all rankings, best first.

    Of equal scores the lower passage number comes first.
    """
    scores: dict[int, float] = defaultdict(float)
    for ranking in rankings:
        for place, passage in enumerate(ranking, 1):
            scores[passage] += 1 / (RRF_K + place)
    return sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))


def _require_same(manifest: dict[str, Any], encoder: TextEncoder, directory: Path) -> None:
    made, given = manifest["model"]["digest"], encoder.facts()["digest"]
    if made != given:
        raise ConfigError(
            f"the index was made with {model_of(manifest)} (digest {made[:12]}), "
            f"not with {encoder.origin} (digest {given[:12]})",
            where=str(directory),
            remedy="search with that model, or build the index again with this one",
        )


def _read(directory: Path, name: str, facts: dict[str, Any]) -> bytes:
    file = directory / name
    content = file.read_bytes() if file.is_file() else b""
    if digest_bytes(content) != facts["digest"]:
        problem = "is not what was written" if content else "is missing"
        raise DataError(f"{file} {problem}", where=str(file), remedy=_rebuild(directory))
    return content


def _rebuild(directory: Path) -> str:
    return f"build it again: distllm search build ... out={directory}"
