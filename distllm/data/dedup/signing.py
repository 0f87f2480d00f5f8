"""Arrays of facts about each document for the decision on duplicates.

MinHash signatures (Broder, "On the resemblance and containment of documents", 1997) are of word
n-grams, cut into bands (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4): two
documents of Jaccard similarity s share a band with probability 1 - (1 - s**rows)**bands.

Shapes: N documents, B bands of R rows, P = B * R permutations, L lines or paragraphs.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from distllm.config.schema_dedup import DedupConfig
from distllm.data.records import TEXT, Document
from distllm.data.shingles import hash_ngrams, hash_words, mix, words_of
from distllm.extras import require

SEPARATORS = {"lines": "\n", "paragraphs": "\n\n"}
MAPPED_UNITS = 1024
"""Units whose files are kept mapped at a time; a process may map some 65,000."""

_BATCH_WORDS, _BATCH_DOCUMENTS = 1 << 18, 1 << 10
_IDS, _ID_ENDS, _DIGESTS, _ID_HASHES, _LENGTHS = "ids", "id_ends", "digests", "id_hashes", "lengths"
_SIGNATURES, _BANDS, _PIECES, _PLACES = "signatures", "bands", "pieces", "places"
_BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Ids:
    """The ids of one unit: their bytes one after another, and where each ends, [N]."""

    text: NDArray[np.uint8]
    ends_N: NDArray[np.int64]

    def __getitem__(self, row: int) -> str:
        start = self.ends_N[row - 1] if row else 0
        return self.text[start : self.ends_N[row]].tobytes().decode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class SignedDocuments:
    """The signatures of one unit, read from ``directory`` on request."""

    directory: Path

    def digests(self) -> NDArray[np.uint64]:
        """Return the two halves of each text's xxh3-128, [N, 2]."""
        return self._load(_DIGESTS)

    def id_hashes(self) -> NDArray[np.uint64]:
        """Return the xxh3-64 of each id, [N]."""
        return self._load(_ID_HASHES)

    def lengths(self) -> NDArray[np.int64]:
        """Return the characters of each text, [N]."""
        lengths_N: NDArray[np.int64] = np.load(self._path(_LENGTHS), mmap_mode="r")
        return lengths_N

    def signatures(self) -> NDArray[np.uint32]:
        """Return the MinHash signature of each text, [N, P]."""
        signatures_NP: NDArray[np.uint32] = np.load(self._path(_SIGNATURES), mmap_mode="r")
        return signatures_NP

    def bands(self) -> NDArray[np.uint64]:
        """Return the hash of each band of each signature, [B, N]: a band lies in one piece on the disk."""
        return self._load(_BANDS)

    def pieces(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return the hash [L] of each line or paragraph, and [L, 2] its document's row and its number."""
        places_L2: NDArray[np.int64] = np.load(self._path(_PLACES), mmap_mode="r")
        return self._load(_PIECES), places_L2

    def ids(self) -> Ids:
        """Return the id of each document."""
        return Ids(np.load(self._path(_IDS), mmap_mode="r"), np.load(self._path(_ID_ENDS), mmap_mode="r"))

    def _load(self, name: str) -> NDArray[np.uint64]:
        array: NDArray[np.uint64] = np.load(self._path(name), mmap_mode="r")
        return array

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.npy"


def sign(batches: Iterable[list[Document]], directory: Path, config: DedupConfig) -> SignedDocuments:
    """Write what ``config`` needs of every document into ``directory``."""
    signer = _Signer(config)
    for batch in batches:
        for document in batch:
            signer.add(document)
    signer.save(directory)
    return SignedDocuments(directory)


class _Signer:
    """Collects the arrays of one unit."""

    def __init__(self, config: DedupConfig) -> None:
        self._config = config
        self._ids: list[str] = []
        self._digests: list[tuple[int, int]] = []
        self._lengths: list[int] = []
        self._pieces, self._places = array("Q"), array("q")
        self._signatures = [np.zeros((0, config.permutations), dtype=np.uint32)]
        self._shingles: list[NDArray[np.uint64]] = []
        self._waiting = 0

    def add(self, document: Document) -> None:
        """Take in one document."""
        row, text = len(self._ids), document.text
        content = text.encode("utf-8", "surrogatepass")
        digest = xxhash.xxh3_128_digest(content)
        self._ids.append(document.id)
        self._digests.append((int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")))
        self._lengths.append(len(text))
        if TEXT in document.fields and self._config.pieces in SEPARATORS:
            self._cut(row, text)
        if self._config.near:
            shingles_G = hash_ngrams(hash_words(words_of(text)), self._config.ngram)
            if not shingles_G.size:  # texts without a word are like nothing but themselves
                shingles_G = np.array(self._digests[-1][:1], dtype=np.uint64)
            self._shingles.append(shingles_G)
            self._waiting += shingles_G.size
            if self._waiting >= _BATCH_WORDS or len(self._shingles) == _BATCH_DOCUMENTS:
                self._sketch()

    def save(self, directory: Path) -> None:
        """Write all arrays."""
        self._sketch()
        ids = [id_.encode("utf-8", "surrogatepass") for id_ in self._ids]
        hashes = [xxhash.xxh3_64_intdigest(id_) for id_ in ids]
        arrays: dict[str, NDArray[Any]] = {
            _IDS: np.frombuffer(b"".join(ids), dtype=np.uint8),
            _ID_ENDS: np.cumsum([len(id_) for id_ in ids], dtype=np.int64),
            _DIGESTS: np.array(self._digests, dtype=np.uint64).reshape(-1, 2),
            _ID_HASHES: np.array(hashes, dtype=np.uint64),
            _LENGTHS: np.array(self._lengths, dtype=np.int64),
        }
        if self._config.pieces in SEPARATORS:
            arrays[_PIECES] = np.frombuffer(self._pieces, dtype=np.uint64)
            arrays[_PLACES] = np.frombuffer(self._places, dtype=np.int64).reshape(-1, 2)
        if self._config.near:
            signatures_NP = np.concatenate(self._signatures)
            arrays[_SIGNATURES] = signatures_NP
            arrays[_BANDS] = _band_hashes(signatures_NP, self._config.rows)
        for name, values in arrays.items():
            np.save(directory / f"{name}.npy", values, allow_pickle=False)

    def _cut(self, row: int, text: str) -> None:
        for number, piece in enumerate(text.split(SEPARATORS[self._config.pieces])):
            if len(plain := piece.strip()) >= self._config.min_piece_chars:
                self._pieces.append(xxhash.xxh3_64_intdigest(plain.encode("utf-8", "surrogatepass")))
                self._places.extend((row, number))

    def _sketch(self) -> None:
        """Turn the shingles that wait into signatures."""
        if not self._shingles:
            return
        rensa = require("rensa", "dedup.near")
        offsets = np.cumsum([0, *(shingles_G.size for shingles_G in self._shingles)]).astype(np.uint64)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            np.concatenate(self._shingles), offsets, self._config.permutations, self._config.minhash_seed
        )
        self._signatures.append(np.array(matrix.to_rows(), dtype=np.uint32))
        self._shingles, self._waiting = [], 0


def _band_hashes(signatures_NP: NDArray[np.uint32], rows: int) -> NDArray[np.uint64]:
    """Return the hash of each band, [B, N]; only hashes of the same band are ever compared."""
    bands = signatures_NP.shape[1] // rows
    hashes_BN = np.empty((bands, len(signatures_NP)), dtype=np.uint64)
    for band in range(bands):
        combined_N = np.zeros(len(signatures_NP), dtype=np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            combined_N = combined_N * _BASE + signatures_NP[:, column]
        hashes_BN[band] = mix(combined_N)
    return hashes_BN
