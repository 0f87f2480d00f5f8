"""The manifest of a prepared dataset: its content, its configuration, and the digests to verify it.

A dataset directory is ``manifest.json``, ``index.json``, ``tokenizer.json``, ``removed.jsonl`` and
the shards ``<source>/<split>/00000.tar``. The manifest is written last: a directory without one is
not a dataset, and a manifest whose own digest is wrong is refused. Only forgetting documents changes
it; then it also names its earlier digests.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path, PurePosixPath
from typing import Any

from distllm.errors import DataError, IntegrityError
from distllm.fsio import atomic_write_json, digest_bytes, digest_file, read_json

FORMAT = 2
MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.json"
MIRROR_FILE = "mirror.json"
"""Marks a directory whose shards come from elsewhere when they are touched (see `mirror`)."""
FORGET_FILE = "forget.json"


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One shard: path relative to the dataset, size and digest of the file, ids of all fields, documents.

    ``content`` is the digest of its ``meta.json``, which holds those of the other members: it does not
    change when another tool packs the same members again.
    """

    path: str
    bytes: int
    digest: str
    tokens: int
    documents: int
    content: str


@dataclass(frozen=True, slots=True)
class SplitRecord:
    """One split of a source, or of all sources together.

    ``tokens`` counts the ids and ``text_bytes`` the UTF-8 bytes of the fields that a model can read:
    all but ``answers``, which holds JSON. A plain document has one EOT. ``languages`` counts documents
    by language code where the preparation recorded it.
    """

    tokens: int
    documents: int
    text_bytes: int
    shards: tuple[ShardRecord, ...]
    languages: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def total(cls, records: Iterable[SplitRecord]) -> SplitRecord:
        """Return several splits as one."""
        parts = list(records)
        languages: Counter[str] = Counter()
        for part in parts:
            languages.update(part.languages)
        return cls(
            tokens=sum(part.tokens for part in parts),
            documents=sum(part.documents for part in parts),
            text_bytes=sum(part.text_bytes for part in parts),
            shards=tuple(shard for part in parts for shard in part.shards),
            languages=dict(sorted(languages.items())),
        )


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """The counts of a source: of ``read`` items, ``kept`` became documents.

    The others are counted in ``dropped`` by rule; ``edited`` counts the documents that each rule
    changed.
    """

    read: int
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    edited: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Documents that were removed afterwards: how many, and the xxh3-128 digests of their names."""

    count: int = 0
    hashes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """A prepared dataset's identity.

    Attributes:
        pipeline: the configuration keys that determine the content.
        inputs: digest of the input of the sources; empty if it is not known.
        sources: the splits of each source, by name.
        fields: the fields of each source's documents, in the order of their members.
        counts: the counts of each source.
        files: digests of the small files beside the manifest.
        lineage: digests of the manifests that this one followed, oldest first: the same samples at
            the same places, but documents were forgotten or shards packed again.
        forgotten: the documents that were removed.
    """

    pipeline: Mapping[str, Any]
    tokenizer_fingerprint: str
    vocab_size: int
    eot_id: int
    token_dtype: str
    sources: Mapping[str, Mapping[str, SplitRecord]]
    fields: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, SourceCounts]
    files: Mapping[str, str]
    inputs: str = ""
    lineage: tuple[str, ...] = ()
    forgotten: Forgotten = Forgotten()

    @property
    def splits(self) -> Mapping[str, SplitRecord]:
        """Each split over all sources, in the order of the sources."""
        names = dict.fromkeys(split for splits in self.sources.values() for split in splits)
        return {
            name: SplitRecord.total(splits[name] for splits in self.sources.values() if name in splits)
            for name in names
        }

    @property
    def total(self) -> SourceCounts:
        """The counts of all sources together."""
        dropped: Counter[str] = Counter()
        edited: Counter[str] = Counter()
        for counts in self.counts.values():
            dropped.update(counts.dropped)
            edited.update(counts.edited)
        return SourceCounts(
            read=sum(counts.read for counts in self.counts.values()),
            kept=sum(counts.kept for counts in self.counts.values()),
            dropped=dict(sorted(dropped.items())),
            edited=dict(sorted(edited.items())),
        )

    def follows(self, digest: str) -> bool:
        """Whether the dataset of ``digest`` is this one, or this one before documents were forgotten.

        All samples of the two have the same places and lengths.
        """
        return digest == self.digest or digest in self.lineage

    @property
    def digest(self) -> str:
        """The xxh3-128 digest of the content: two datasets are the same if and only if it is equal."""
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
                a file it names is missing or changed, or a removal of documents was cut short.
        """
        if (directory / FORGET_FILE).exists():
            raise DataError(
                f"documents were being forgotten in {directory} when the process was stopped",
                where=str(directory / FORGET_FILE),
                remedy=f"finish it with: distllm data forget out={directory}",
            )
        manifest = cls.read(directory)
        for name, problem in manifest.file_problems(directory).items():
            remedy = rebuild_index(directory) if name == INDEX_FILE else rebuild(directory)
            raise _damaged(directory, directory / name, problem, remedy)
        return manifest

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read only the manifest, for commands that repair the other files.

        Raises:
            DataError: there is none, it was changed after it was written, or it is of another format.
        """
        path = directory / MANIFEST_FILE
        if not path.is_file():
            raise DataError(
                f"{directory} holds no prepared dataset",
                where=str(path),
                remedy=f"run: distllm prepare data.out={directory} and the keys that say what it is made of",
            )
        try:
            manifest = _decode(read_json(path))
        except (IntegrityError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise _damaged(directory, path, f"it is not a manifest of format {FORMAT} ({error})") from error
        if manifest is None:
            raise _damaged(directory, path, "its content was changed after it was written")
        return manifest

    def file_problems(self, directory: Path) -> dict[str, str]:
        """Return what is wrong with each of the small files beside the manifest, by its name."""
        problems = {}
        for name, digest in self.files.items():
            if not (directory / name).is_file():
                problems[name] = "it is missing"
            elif digest_file(directory / name) != digest:
                problems[name] = "its content is not what was written"
        return problems

    def check_sizes(self, directory: Path, split: str | None = None) -> None:
        """Check that every shard, of one split or of all, has its size; costs one stat per shard.

        Raises:
            DataError: a shard is missing or of another size, or there is no such split.
        """
        splits = self.splits
        if split is not None and split not in splits:
            raise DataError(
                f"{directory} has no split {split!r}",
                where=str(directory / MANIFEST_FILE),
                remedy=f"use one of: {', '.join(sorted(splits))}",
            )
        for name in splits if split is None else (split,):
            for shard in splits[name].shards:
                problem = size_problem(directory, shard)
                if problem is not None:
                    raise _damaged(directory, directory / shard.path, problem)


def _content_digest(content: Mapping[str, Any]) -> str:
    return digest_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def _decode(document: Any) -> Manifest | None:
    """Return the manifest, or None if its digest is not that of its content."""
    if document["format"] != FORMAT:
        raise ValueError(f"it is of format {document['format']}")
    content = {item.name: document[item.name] for item in dataclass_fields(Manifest)}
    if document["digest"] != _content_digest(content):
        return None
    sources = {
        source: {split: _split_record(record) for split, record in splits.items()}
        for source, splits in content["sources"].items()
    }
    shards = (shard for splits in sources.values() for split in splits.values() for shard in split.shards)
    for name in (*content["files"], *(shard.path for shard in shards)):
        # What a manifest names is fetched, written and removed below the dataset's directory.
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"it names {name!r}, which is outside the dataset")
    return Manifest(
        **{
            **content,
            "sources": sources,
            "fields": {source: tuple(names) for source, names in content["fields"].items()},
            "counts": {source: SourceCounts(**counts) for source, counts in content["counts"].items()},
            "lineage": tuple(content["lineage"]),
            "forgotten": Forgotten(content["forgotten"]["count"], tuple(content["forgotten"]["hashes"])),
        }
    )


def _split_record(record: Mapping[str, Any]) -> SplitRecord:
    shards = tuple(ShardRecord(**shard) for shard in record["shards"])
    return SplitRecord(**{**record, "shards": shards})


def size_problem(directory: Path, shard: ShardRecord) -> str | None:
    """Return what is wrong with a shard's file, if it is missing or of another size, else None."""
    file = directory / shard.path
    if not file.is_file():
        return None if (directory / MIRROR_FILE).is_file() else "it is missing"
    size = file.stat().st_size
    return None if size == shard.bytes else f"it has {size} bytes, expected {shard.bytes}"


def _damaged(directory: Path, file: Path, problem: str, remedy: str | None = None) -> DataError:
    return DataError(
        f"{file.relative_to(directory)} of the dataset {directory} cannot be used: {problem}",
        where=str(file),
        remedy=remedy or rebuild(directory),
    )


def rebuild_index(directory: Path) -> str:
    """Return the remedy for an index that contradicts its shards."""
    return f"if the shards are right, run: distllm data reindex out={directory}"


def rebuild(directory: Path) -> str:
    """Return the remedy for a dataset that cannot be repaired."""
    return f"remove {directory}, then run: distllm prepare data.out={directory}"
