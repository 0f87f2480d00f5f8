"""The manifest of a prepared dataset: what it holds, what made it, and the digests that prove it.

A dataset directory is ``manifest.json``, ``index.json``, ``tokenizer.json``, ``removed.jsonl`` and
the shards ``<split>/00000.tar``. The manifest is written last and never changed: a directory
without one is no dataset, and a manifest that its own digest contradicts is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from distllm.errors import DataError, IntegrityError
from distllm.fsio import atomic_write_json, digest_bytes, digest_file, read_json

FORMAT = 1
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One shard: path relative to the dataset, size and digest of the file, and what it counts."""

    path: str
    bytes: int
    digest: str
    tokens: int
    documents: int


@dataclass(frozen=True, slots=True)
class SplitRecord:
    """One split. ``tokens`` counts one EOT per document; ``text_bytes`` counts UTF-8 without them."""

    tokens: int
    documents: int
    text_bytes: int
    shards: tuple[ShardRecord, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A prepared dataset's identity.

    ``pipeline`` holds the configuration keys that determine the content; ``files`` the digests of
    the small files beside the manifest. Of ``read`` items the source offered, ``kept`` became
    documents and the others were dropped, counted in ``dropped`` by rule; ``edited`` counts the
    documents that each cleaning rule changed.
    """

    pipeline: Mapping[str, Any]
    tokenizer_fingerprint: str
    vocab_size: int
    eot_id: int
    token_dtype: str
    splits: Mapping[str, SplitRecord]
    read: int
    kept: int
    dropped: Mapping[str, int]
    edited: Mapping[str, int]
    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        """The xxh3-128 digest of the content: two datasets are the same exactly if it is equal."""
        return _content_digest(asdict(self))

    def save(self, directory: Path) -> None:
        """Write ``manifest.json``, whole or not at all."""
        content = asdict(self)
        document = {"format": FORMAT, "digest": _content_digest(content), **content}
        atomic_write_json(directory / MANIFEST_FILE, document)

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read the manifest of ``directory`` and check it and the small files it names.

        Raises:
            DataError: there is none, it was changed after it was written, it is of another format,
                or a file it names is missing or changed.
        """
        path = directory / MANIFEST_FILE
        if not path.is_file():
            raise DataError(
                f"{directory} holds no prepared dataset",
                where=str(path),
                remedy=f"run: distllm prepare data.out={directory}",
            )
        try:
            manifest = _decode(read_json(path))
        except (IntegrityError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(directory, path, f"it is not a manifest of format {FORMAT} ({error})") from error
        if manifest is None:
            raise _damaged(directory, path, "its content was changed after it was written")
        for name, digest in manifest.files.items():
            file = directory / name
            if not file.is_file():
                raise _damaged(directory, file, "it is missing")
            if digest_file(file) != digest:
                raise _damaged(directory, file, "its content is not what was written")
        return manifest

    def check_sizes(self, directory: Path, split: str) -> None:
        """Check that every shard of ``split`` is there with its size; costs one stat a shard.

        Raises:
            DataError: a shard is missing or of another size, or there is no such split.
        """
        if split not in self.splits:
            raise DataError(
                f"{directory} has no split {split!r}",
                where=str(directory / MANIFEST_FILE),
                remedy=f"use one of: {', '.join(sorted(self.splits))}",
            )
        for shard in self.splits[split].shards:
            problem = _size_problem(directory, shard)
            if problem is not None:
                raise _damaged(directory, directory / shard.path, problem)


def verify(directory: Path) -> Manifest:
    """Recompute the digest of every shard; reads the whole dataset.

    Raises:
        DataError: naming every shard that is missing, cut, or changed.
    """
    manifest = Manifest.load(directory)
    bad: list[str] = []
    for split in manifest.splits.values():
        for shard in split.shards:
            problem = _size_problem(directory, shard)
            if problem is None and digest_file(directory / shard.path) != shard.digest:
                problem = "its content is not what was written"
            if problem is not None:
                bad.append(f"{shard.path}: {problem}")
    if bad:
        raise DataError(
            f"{len(bad)} damaged shards in {directory}: {'; '.join(bad)}",
            where=str(directory / bad[0].split(":", 1)[0]),
            remedy=_rebuild(directory),
        )
    return manifest


def _content_digest(content: Mapping[str, Any]) -> str:
    return digest_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def _decode(document: Any) -> Manifest | None:
    """Return the manifest, or None if its content and its digest contradict each other."""
    content = {item.name: document[item.name] for item in fields(Manifest)}
    if document["format"] != FORMAT:
        raise KeyError(f"format {document['format']}")
    if document["digest"] != _content_digest(content):
        return None
    splits = {
        name: SplitRecord(**{**split, "shards": tuple(ShardRecord(**shard) for shard in split["shards"])})
        for name, split in content["splits"].items()
    }
    return Manifest(**{**content, "splits": splits})


def _size_problem(directory: Path, shard: ShardRecord) -> str | None:
    file = directory / shard.path
    if not file.is_file():
        return "it is missing"
    size = file.stat().st_size
    return None if size == shard.bytes else f"it has {size} bytes, expected {shard.bytes}"


def _damaged(directory: Path, file: Path, problem: str) -> DataError:
    return DataError(
        f"{file.relative_to(directory)} of the dataset {directory} cannot be used: {problem}",
        where=str(file),
        remedy=_rebuild(directory),
    )


def _rebuild(directory: Path) -> str:
    return f"remove {directory}, then run: distllm prepare data.out={directory}"
