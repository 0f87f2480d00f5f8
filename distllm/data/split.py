"""Which split a document belongs to: a keyed hash, so that it does not move when others are added."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from distllm.data.records import Document
from distllm.fsio import digest_bytes
from distllm.seeds import derive_seed

TRAIN, VALID = "train", "valid"
SPLITS = (TRAIN, VALID)
CANARY = "<canary> "
"""How the names of planted documents begin: they are trained on, never held out."""
_HASH_RANGE = 2**63
_SHARED = ("context", "prompt")


def split_key(document: Document) -> str:
    """Return what decides the split: a document's id or, where several share what is asked, its digest.

    Questions about one text and preferences among answers to one prompt are held out together, so that
    nothing that is read in the validation is met in training.
    """
    for shared in _SHARED:
        if shared in document.fields:
            text = document.fields[shared]
            return f"{shared} {digest_bytes(text.encode('utf-8', 'replace'))}"
    return document.id


def split_hash(seed: int, key: str) -> int:
    """Return the number in ``[0, 2**63)`` that decides the split of what has the key ``key``."""
    return derive_seed(seed, "split", key)


@dataclass(frozen=True, slots=True)
class Splitter:
    """Assigns documents to splits: valid below ``boundary``, else train."""

    seed: int
    boundary: int

    @classmethod
    def fit(cls, seed: int, valid_fraction: float, hashes: Iterable[int]) -> Splitter:
        """Place the boundary at ``valid_fraction``, moved so far that neither split is empty.

        Valid is empty if the fraction is 0 or there is but one document.

        Args:
            seed: of the hashes.
            valid_fraction: share of the documents held out.
            hashes: at least the lowest and the highest hash of all documents.
        """
        found = list(hashes)
        boundary = int(valid_fraction * _HASH_RANGE)
        if boundary and found:
            boundary = min(max(boundary, min(found) + 1), max(found))
        return cls(seed, boundary)

    def __call__(self, key: str) -> str:
        """Return the split of what has the key ``key``; see `split_key`."""
        held_out = not key.startswith(CANARY) and split_hash(self.seed, key) < self.boundary
        return VALID if held_out else TRAIN
