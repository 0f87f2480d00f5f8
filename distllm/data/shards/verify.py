"""Verifies a whole dataset: the digest of every file; all problems are reported together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from distllm.data.manifest import FORGET_FILE, INDEX_FILE, Manifest, rebuild, rebuild_index, size_problem
from distllm.data.records import ANSWERS
from distllm.data.shards.blocks import BlockVerifier
from distllm.data.shards.documents import shard_ids
from distllm.data.shards.format import BLOCKS, META, IndexedShard, members_of
from distllm.data.shards.index import Index, index_of
from distllm.data.shards.reader import map_shard, payload, read_meta
from distllm.errors import DataError
from distllm.fsio import digest_bytes, digest_file


def verify(directory: Path) -> Manifest:
    """Recompute every digest and compare every count; reads the whole dataset.

    Raises:
        DataError: naming every file that is missing, cut, changed, left over, or contradicts another.
    """
    manifest = Manifest.load(directory) if (directory / FORGET_FILE).exists() else Manifest.read(directory)
    files = manifest.file_problems(directory)
    problems = [f"{name}: {problem}" for name, problem in files.items()]
    problems += [*_count_problems(manifest), *_left_over(directory, manifest)]
    index: Index = {}
    try:
        index = {} if INDEX_FILE in files else index_of(directory, manifest)
    except DataError as error:
        files[INDEX_FILE] = error.cause
        problems.append(f"{INDEX_FILE}: {error.cause}")
    if INDEX_FILE in files:
        problems += _file_problems(directory, manifest)
    for source, splits in index.items():
        for split, shards in splits.items():
            problems += _token_problems(manifest, source, split, shards)
            for shard in shards:
                found = _shard_problems(directory, manifest, shard, source, split)
                problems += [f"{shard.record.path}: {problem}" for problem in found]
    if problems:
        raise DataError(
            f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'} in {directory}: "
            f"{'; '.join(problems)}",
            where=str(directory / problems[0].split(":", 1)[0]),
            remedy=rebuild_index(directory)
            if INDEX_FILE in files
            else f"restore what is damaged from a copy, or {rebuild(directory)}",
        )
    return Manifest.load(directory)


def _file_problems(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Yield the tars that differ from the manifest, which is all that can be checked without an index."""
    for split in manifest.splits.values():
        for record in split.shards:
            problem = size_problem(directory, record)
            if problem is None and digest_file(directory / record.path) != record.digest:
                problem = "its content is not what was written"
            if problem is not None:
                yield f"{record.path}: {problem}"


def _count_problems(manifest: Manifest) -> Iterator[str]:
    """Yield the facts of a split on which the manifest and the shards differ."""
    for source, splits in manifest.sources.items():
        for split, record in splits.items():
            said, held = record.documents, sum(shard.documents for shard in record.shards)
            if said != held:
                yield f"manifest.json: {source}/{split} has {said} documents, its shards have {held}"
        if source not in manifest.fields:
            yield f"manifest.json: it does not name the fields of {source}"


def _token_problems(
    manifest: Manifest, source: str, split: str, shards: Sequence[IndexedShard]
) -> Iterator[str]:
    """Yield how the tokens of a split differ from the ids of its fields.

    Earlier versions counted the field ``answers`` too, which no model reads.
    """
    itemsize = np.dtype(manifest.token_dtype).itemsize
    sizes: Counter[str] = Counter()
    for shard in shards:
        sizes.update({field: shard.members[members_of(field)[0]].bytes // itemsize for field in shard.fields})
    said, held = manifest.sources[source][split].tokens, sizes.total() - sizes[ANSWERS]
    if said not in (held, sizes.total()):
        yield f"manifest.json: {source}/{split} has {said} tokens, its shards have {held}"


def _left_over(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Yield the tars that the manifest does not name."""
    named = {shard.path for split in manifest.splits.values() for shard in split.shards}
    for tar in sorted(directory.glob("*/*/*.tar")):
        path = tar.relative_to(directory).as_posix()
        if path not in named:
            yield f"{path}: the manifest does not name it"


def _shard_problems(
    directory: Path, manifest: Manifest, shard: IndexedShard, source: str, split: str
) -> Iterator[str]:
    """Yield what is wrong with one shard and its list of ids."""
    try:
        shard_ids(directory, shard)
    except DataError as error:
        yield error.cause
    if (problem := size_problem(directory, shard.record)) is not None:
        yield problem
    elif digest_file(directory / shard.record.path) != shard.record.digest:
        yield "its content is not what was written: " + _locate(directory, manifest, shard)
    else:
        yield from _contradictions(directory, manifest, shard, source, split)


def _contradictions(
    directory: Path, manifest: Manifest, shard: IndexedShard, source: str, split: str
) -> Iterator[str]:
    """Yield the facts on which an undamaged shard and the dataset differ."""
    try:
        meta = read_meta(directory, shard)
    except DataError as error:
        yield error.cause
        return
    wanted = {
        "source": source,
        "split": split,
        "dtype": manifest.token_dtype,
        "tokenizer": manifest.tokenizer_fingerprint,
        "tokens": shard.record.tokens,
        "documents": shard.record.documents,
    }
    for key, value in wanted.items():
        if meta[key] != value:
            yield f"its {META} says {key}={meta[key]}, the dataset says {value}"
    if shard.fields != tuple(manifest.fields.get(source, ())):
        yield f"it has the fields {', '.join(shard.fields)}, the manifest says otherwise"


def _locate(directory: Path, manifest: Manifest, shard: IndexedShard) -> str:
    """Say which part of a damaged tar of the right size is damaged."""
    dtype = np.dtype(manifest.token_dtype).newbyteorder("<")
    try:
        for suffix in (META, BLOCKS, *(members_of(field)[1] for field in shard.fields)):
            if digest_bytes(payload(directory, shard, suffix).tobytes()) != shard.members[suffix].digest:
                return f"{suffix} is damaged"
        for field in shard.fields:
            ids_M, _ = map_shard(directory, shard, dtype, field)
            BlockVerifier(directory, shard, dtype, field).check(0, ids_M.size)
    except DataError as error:
        return error.cause
    return "bytes between the members were changed"
