"""Forgetting documents: their ids become EOT, their names are removed, and no other sample moves.

A document keeps its place and length, so the order of every run stays the same. New files are built
in ``forget.partial``. Then ``forget.json`` is written, with the digest of each; it is
removed when all files are in place, the manifest last. If the process is killed before ``forget.json``
exists, the dataset is unchanged; if later, every reader refuses it until the next call has
moved the remaining files.

Shapes: M ids and D documents of one shard, N ids of one field of a document, V ids of a vocabulary.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distllm.data.manifest import (
    FORGET_FILE,
    MANIFEST_FILE,
    Forgotten,
    Manifest,
    SplitRecord,
    rebuild,
)
from distllm.data.shards.blocks import BlockVerifier
from distllm.data.shards.documents import (
    Place,
    document_texts,
    find_documents,
    read_document,
    shard_ids,
)
from distllm.data.shards.format import IndexedShard
from distllm.data.shards.index import Index, index_of, write_index
from distllm.data.shards.locked import locked
from distllm.data.shards.reader import map_shard
from distllm.data.shards.writer import Column, write_shard
from distllm.data.tokenizer import Tokenizer
from distllm.errors import DataError
from distllm.fsio import (
    TEMPORARY_SUFFIX,
    atomic_write_json,
    atomic_write_text,
    digest_bytes,
    digest_file,
    fsync_directory,
    read_json,
    storage_errors,
)

PARTIAL = "forget.partial"
REMOVED_MARK = "[forgotten]"
_LOGS = ("removed.jsonl", "report.json")
_IDENTIFYING = ("id", "reason", "sample")


@dataclass(frozen=True, slots=True)
class Removal:
    """The result of ``forget``: the removed documents and the new manifest.

    The documents include those of an earlier, killed call that this one finished.
    """

    places: tuple[Place, ...]
    manifest: Manifest


def forget(directory: Path, ids: Collection[str], source: str | None = None) -> Removal:
    """Remove the documents of these ids from every split, and their traces in the logs of the dataset.

    An unfinished removal is finished first. With no ids, nothing else happens.

    Args:
        directory: the dataset.
        ids: names of documents; one that several sources have is removed from all of them.
        source: look in this source only.

    Raises:
        DataError: an id is unknown, or a shard that holds one is damaged; nothing was changed.
        RunDirectoryBusy: another process changes the dataset.
        StorageError: the disk is full or not writable; the dataset is as it was.
    """
    Manifest.read(directory)  # that there is a dataset, before its lock is looked for
    with locked(directory), storage_errors(directory):
        finished: tuple[Place, ...] = ()
        if (directory / FORGET_FILE).exists():
            finished = _finish(directory)
        partial = directory / PARTIAL
        shutil.rmtree(partial, ignore_errors=True)
        for torn in directory.glob(f".{FORGET_FILE}.*{TEMPORARY_SUFFIX}"):
            torn.unlink()  # of a call that was killed while it wrote its intent
        manifest = Manifest.load(directory)
        if not ids:
            return Removal(finished, manifest)
        try:
            places, after = _stage(directory, manifest, ids, source)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _commit(directory, places)
        finished += _finish(directory)
    return Removal(finished, after)


def name_hash(place: Place) -> str:
    """Return the digest of a document's source and name that the manifest keeps."""
    return digest_bytes(f"{place.source}\0{place.id}".encode("utf-8", "surrogatepass"))


def _stage(
    directory: Path, manifest: Manifest, ids: Collection[str], source: str | None
) -> tuple[list[Place], Manifest]:
    """Build every file that changes under ``forget.partial``."""
    partial = directory / PARTIAL
    before = index_of(directory, manifest)
    places = find_documents(directory, before, ids, source)
    tokenizer = Tokenizer.load(directory)
    dtype = np.dtype(manifest.token_dtype).newbyteorder("<")
    lengths_V = tokenizer.token_byte_lengths()
    texts: list[str] = []
    lost_bytes: Counter[tuple[str, str]] = Counter()
    rows: dict[tuple[str, str, int], list[int]] = {}
    for place in places:
        shard = before[place.source][place.split][place.shard]
        found = read_document(directory, shard, place.row, dtype)
        own = list(document_texts(found, tokenizer).values())
        texts += own
        lost_bytes[place.source, place.split] += (
            sum(int(lengths_V[ids_N].sum()) for ids_N in found.values())
            if lengths_V is not None
            else sum(len(text.encode()) for text in own)
        )
        rows.setdefault((place.source, place.split, place.shard), []).append(place.row)
    rewritten = {
        (name, split, number): _rewrite(directory, manifest, before[name][split][number], found_rows)
        for (name, split, number), found_rows in rows.items()
    }
    index = {
        name: {
            split: [rewritten.get((name, split, number), shard) for number, shard in enumerate(entries)]
            for split, entries in splits.items()
        }
        for name, splits in before.items()
    }
    write_index(partial, index)
    _stage_logs(directory, ids, texts)
    after = _following(manifest, index, lost_bytes, places, partial)
    after.save(partial)
    return places, after


def _rewrite(directory: Path, manifest: Manifest, shard: IndexedShard, rows: Sequence[int]) -> IndexedShard:
    """Rewrite a shard and its list of ids, with EOT for every id of the documents ``rows``."""
    dtype = np.dtype(manifest.token_dtype).newbyteorder("<")
    columns: dict[str, Column] = {}
    for field in shard.fields:
        mapped_M, ends_D = map_shard(directory, shard, dtype, field)
        BlockVerifier(directory, shard, dtype, field).check(0, mapped_M.size)
        ids_M = mapped_M.copy()
        for row in rows:
            ids_M[int(ends_D[row - 1]) if row else 0 : int(ends_D[row])] = manifest.eot_id
        columns[field] = (ids_M, ends_D)
    ids = shard_ids(directory, shard)
    for row in rows:
        ids[row] = None
    fingerprint = manifest.tokenizer_fingerprint
    return write_shard(directory / PARTIAL, shard.record.path, ids, columns, dtype, fingerprint)


def _following(
    manifest: Manifest,
    index: Index,
    lost_bytes: Counter[tuple[str, str]],
    places: Sequence[Place],
    partial: Path,
) -> Manifest:
    """Return the next manifest: the same places and lengths, with new digests."""

    def settle(source: str, split: str, record: SplitRecord) -> SplitRecord:
        shards = tuple(shard.record for shard in index[source][split])
        text_bytes = record.text_bytes - lost_bytes[source, split]
        return replace(record, shards=shards, text_bytes=text_bytes)

    staged = [name for name in manifest.files if (partial / name).is_file()]
    hashes = {*manifest.forgotten.hashes, *(name_hash(place) for place in places)}
    return replace(
        manifest,
        sources={
            source: {split: settle(source, split, record) for split, record in splits.items()}
            for source, splits in manifest.sources.items()
        },
        files={**manifest.files, **{name: digest_file(partial / name) for name in staged}},
        lineage=(*manifest.lineage, manifest.digest),
        forgotten=Forgotten(manifest.forgotten.count + len(places), tuple(sorted(hashes))),
    )


def _commit(directory: Path, places: Sequence[Place]) -> None:
    """Make the staged files durable, and then the decision to use them."""
    partial = directory / PARTIAL
    for parent, _, _ in os.walk(partial):
        fsync_directory(Path(parent))
    files = {path.relative_to(partial).as_posix(): digest_file(path) for path in _files(partial)}
    atomic_write_json(directory / FORGET_FILE, {"files": files, "places": [asdict(p) for p in places]})


def _finish(directory: Path) -> tuple[Place, ...]:
    """Move every staged file into its place, the manifest last; continues where a killed call stopped.

    Returns:
        The documents that were removed by this.
    """
    partial = directory / PARTIAL
    intent = read_json(directory / FORGET_FILE)
    files: dict[str, str] = intent["files"]
    for name in sorted(files, key=lambda name: (name == MANIFEST_FILE, name)):
        staged, target = partial / name, directory / name
        if staged.is_file():
            staged.replace(target)
            fsync_directory(target.parent)
        if not target.is_file() or digest_file(target) != files[name]:
            raise DataError(
                f"{target} is neither staged nor in its place",
                where=str(directory / FORGET_FILE),
                remedy=f"restore {directory} from a copy, or {rebuild(directory)}",
            )
    shutil.rmtree(partial, ignore_errors=True)
    (directory / FORGET_FILE).unlink()
    fsync_directory(directory)
    return tuple(Place(**place) for place in intent["places"])


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _stage_logs(directory: Path, ids: Collection[str], texts: Sequence[str]) -> None:
    """Stage the logs beside the manifest, if they name a document or quote it."""
    for name in _LOGS:
        file = directory / name
        if not file.is_file():
            continue
        before = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            lines = [json.loads(line) for line in before.splitlines()]
            after = "".join(json.dumps(_scrub(line, ids, texts)) + "\n" for line in lines)
        else:
            after = json.dumps(_scrub(json.loads(before), ids, texts), indent=2, sort_keys=True) + "\n"
        if after != before:
            atomic_write_text(directory / PARTIAL / name, after)


def _scrub(value: Any, ids: Collection[str], texts: Sequence[str], *, sample: bool = False) -> Any:
    """Return a JSON value without the parts that name, describe or quote a document."""
    if isinstance(value, dict) and value.get("id") in ids:
        return {key: REMOVED_MARK if key in _IDENTIFYING else item for key, item in value.items()}
    if isinstance(value, dict):
        return {
            key: _scrub(item, ids, texts, sample=sample or key.startswith("sample"))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_scrub(item, ids, texts, sample=sample) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if value in ids or (sample and any(value in text for text in texts)):
        return REMOVED_MARK
    # The reason why another one went ends with the name of what it repeats.
    named = next((id_ for id_ in ids if value.endswith(f" {id_}")), "")
    return f"{value.removesuffix(named)}{REMOVED_MARK}" if named else value
