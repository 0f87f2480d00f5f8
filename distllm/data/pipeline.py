"""Preparation: read, clean, deduplicate, split, train the tokenizer, encode, write shards.

Cleaned documents wait in a temporary file of the staging directory between the stages, so memory
holds one batch of documents, one shard of ids per split, and a digest per document. The same input
and configuration give a byte-identical directory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from distllm.config.schema import Config
from distllm.data.clean import clean, drop_short
from distllm.data.dedup import ExactDedup
from distllm.data.manifest import MANIFEST_FILE, Manifest, SourceCounts, SplitRecord
from distllm.data.readers import SOURCES
from distllm.data.records import TEXT, Document, Dropped, Progress
from distllm.data.shards import INDEX_FILE, IndexedShard, ShardWriter, token_dtype, write_index
from distllm.data.staging import Staging
from distllm.data.tokenizer import TOKENIZER_FILE, Tokenizer
from distllm.errors import DataError
from distllm.fsio import digest_file, storage_errors
from distllm.seeds import derive_seed

REMOVED_FILE = "removed.jsonl"
TRAIN, VALID = "train", "valid"
Report = Callable[[Progress], None]

_SPOOL_FILE = "documents.spool"
_REPORT_EVERY = 64
_BATCH_CHARS = 1 << 20
_HASH_RANGE = 2**63


def prepare(config: Config, report: Report | None = None) -> Manifest:
    """Make the dataset directory ``config.data.out`` and return its manifest.

    A directory that the same configuration has made before is returned at once. Everything the
    source offered and a rule refused is listed in ``removed.jsonl`` with its reason.

    Raises:
        DataError: the source cannot be used or nothing of it survives, or ``data.out`` holds
            something else.
        TokenizerError: ``tokenizer.path`` cannot be used.
        RunDirectoryBusy: another process is preparing the same directory.
        StorageError: the disk is full or not writable; nothing is left behind.
    """
    out = Path(config.data.out)
    with storage_errors(out):
        if (existing := _find_existing(out, config)) is not None:
            return existing
        with Staging(out) as staging:
            if (existing := _find_existing(out, config)) is not None:
                return existing  # another process finished it while this one waited for the lock
            manifest = _build(config, staging.directory, report or _ignore)
            staging.commit()
    return manifest


def pipeline_identity(config: Config) -> dict[str, Any]:
    """Return the keys that determine a dataset's content, by dotted path, as JSON values."""
    data = config.data
    return {
        "data.source": data.source,
        "data.paths": list(data.paths),
        "data.text_key": data.text_key,
        "data.max_bytes": data.max_bytes,
        "clean.min_chars": config.clean.min_chars,
        "data.valid_fraction": data.valid_fraction,
        "data.shard_bytes": data.shard_bytes,
        **{f"tokenizer.{key}": value for key, value in asdict(config.tokenizer).items()},
        "seed": config.seed,
    }


def _ignore(_: Progress) -> None:
    """Report to nobody."""


def _find_existing(out: Path, config: Config) -> Manifest | None:
    """Return the manifest in ``out`` if this configuration made it, None if there is nothing."""
    if not (out / MANIFEST_FILE).is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(
                f"{out} exists and is not a prepared dataset",
                where="data.out",
                remedy="choose another data.out, or remove what is there",
            )
        return None
    manifest = Manifest.load(out)
    wanted = pipeline_identity(config)
    keys = sorted(wanted.keys() | manifest.pipeline.keys())
    differing = [key for key in keys if wanted.get(key) != manifest.pipeline.get(key)]
    if differing:
        changes = "; ".join(
            f"{key} was {manifest.pipeline.get(key)}, is {wanted.get(key)}" for key in differing
        )
        raise DataError(
            f"{out} was prepared with another configuration: {changes}",
            where="data.out",
            remedy=f"choose another data.out, or remove {out} and prepare again",
        )
    for split in manifest.splits:
        manifest.check_sizes(out, split)
    return manifest


def _build(config: Config, directory: Path, report: Report) -> Manifest:
    """Write the whole dataset into ``directory``, the manifest last."""
    loaded = Tokenizer.load(Path(config.tokenizer.path)) if config.tokenizer.path else None
    spool = directory / _SPOOL_FILE
    tally = _collect(config, directory, report)
    splitter = _Splitter.fit(config, tally)
    tokenizer = loaded or _train_tokenizer(config, spool, splitter, tally, report)
    tokenizer.save(directory / TOKENIZER_FILE)
    writers = {
        split: ShardWriter(
            directory,
            config.data.source,
            split,
            dtype=token_dtype(tokenizer.vocab_size),
            shard_bytes=config.data.shard_bytes,
            tokenizer_fingerprint=tokenizer.fingerprint,
        )
        for split in (TRAIN, VALID)
    }
    text_bytes = _encode(spool, splitter, tokenizer, writers, tally, report)
    shards = {split: writer.close() for split, writer in writers.items()}
    write_index(directory, {config.data.source: shards})
    spool.unlink()
    manifest = Manifest(
        pipeline=pipeline_identity(config),
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eot_id=tokenizer.eot_id,
        token_dtype=token_dtype(tokenizer.vocab_size).name,
        sources={
            config.data.source: {split: _split_record(shards[split], text_bytes[split]) for split in shards}
        },
        fields={config.data.source: (TEXT,)},
        counts={config.data.source: tally.counts()},
        files={name: digest_file(directory / name) for name in (INDEX_FILE, TOKENIZER_FILE)},
    )
    manifest.save(directory)
    return manifest


def _split_record(shards: list[IndexedShard], text_bytes: int) -> SplitRecord:
    records = tuple(shard.record for shard in shards)
    tokens, documents = sum(r.tokens for r in records), sum(r.documents for r in records)
    return SplitRecord(tokens=tokens, documents=documents, text_bytes=text_bytes, shards=records)


@dataclass(slots=True)
class _Tally:
    """What the collection counted, and the range of the kept documents' split hashes."""

    read: int = 0
    kept: int = 0
    text_bytes: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    edited: Counter[str] = field(default_factory=Counter)
    first_reasons: dict[str, str] = field(default_factory=dict)
    lowest_hash: int = _HASH_RANGE
    highest_hash: int = -1

    def counts(self) -> SourceCounts:
        """Return the counts as the manifest holds them."""
        dropped, edited = dict(sorted(self.dropped.items())), dict(sorted(self.edited.items()))
        return SourceCounts(self.read, self.kept, dropped, edited)

    def drop(self, item: Dropped, log: IO[str]) -> None:
        """Count and log one refusal."""
        self.dropped[item.rule] += 1
        self.first_reasons.setdefault(item.rule, f"{item.id}: {item.reason}")
        log.write(json.dumps(asdict(item)) + "\n")

    def keep(self, document: Document, split_hash: int, spool: IO[str]) -> None:
        """Count and spool one document."""
        self.kept += 1
        self.text_bytes += len(document.text.encode())
        self.lowest_hash = min(self.lowest_hash, split_hash)
        self.highest_hash = max(self.highest_hash, split_hash)
        spool.write(json.dumps([document.id, document.text]) + "\n")


def _collect(config: Config, directory: Path, report: Report) -> _Tally:
    """Read, clean and deduplicate into the spool until the source or ``data.max_bytes`` ends.

    ``max_bytes`` counts UTF-8 bytes of kept text; the document that reaches it is the last.
    """
    tally, dedup, limit = _Tally(), ExactDedup(), config.data.max_bytes

    def tell() -> None:
        done = tally.text_bytes if limit is None else min(tally.text_bytes, limit)
        note = f"{tally.kept} documents, {tally.dropped.total()} dropped"
        report(Progress("collect", done, limit, "bytes", note))

    with (
        (directory / _SPOOL_FILE).open("w", encoding="utf-8") as spool,
        (directory / REMOVED_FILE).open("w", encoding="utf-8") as log,
    ):
        for item in SOURCES[config.data.source](config):
            tally.read += 1
            if isinstance(item, Document):
                text, changed = clean(item.text)
                tally.edited.update(changed)
                item = Document.of_text(item.id, text)
                item = drop_short(item, config.clean.min_chars) or dedup.drop_duplicate(item) or item
            if isinstance(item, Dropped):
                tally.drop(item, log)
            else:
                tally.keep(item, _split_hash(config.seed, item), spool)
            if tally.read % _REPORT_EVERY == 1:
                tell()
            if limit is not None and tally.text_bytes >= limit:
                break
    tell()
    if tally.kept == 0:
        raise _nothing_survived(config, tally)
    return tally


def _nothing_survived(config: Config, tally: _Tally) -> DataError:
    reasons = [f"{tally.dropped[rule]} {rule} (first: {why})" for rule, why in tally.first_reasons.items()]
    return DataError(
        f"no document of the source {config.data.source!r} survived; "
        f"of {tally.read} read: {'; '.join(reasons) or 'none'}",
        where="data.paths" if config.data.paths else "data.source",
        remedy="correct the source, data.text_key or clean.min_chars",
    )


def _split_hash(seed: int, document: Document) -> int:
    return derive_seed(seed, "split", document.id)


@dataclass(frozen=True, slots=True)
class _Splitter:
    """Assigns documents to splits by a keyed hash of their id: valid below ``boundary``."""

    seed: int
    boundary: int

    @classmethod
    def fit(cls, config: Config, tally: _Tally) -> _Splitter:
        """Place the boundary at ``valid_fraction``, moved so far that neither split is empty.

        Valid is empty if the fraction is 0 or there is but one document.
        """
        boundary = int(config.data.valid_fraction * _HASH_RANGE)
        if boundary:
            boundary = min(max(boundary, tally.lowest_hash + 1), tally.highest_hash)
        return cls(config.seed, boundary)

    def __call__(self, document: Document) -> str:
        """Return the name of the split of ``document``."""
        return VALID if _split_hash(self.seed, document) < self.boundary else TRAIN


def _read_spool(path: Path) -> Iterator[Document]:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield Document.of_text(*json.loads(line))


def _train_tokenizer(
    config: Config, spool: Path, splitter: _Splitter, tally: _Tally, report: Report
) -> Tokenizer:
    """Train on the train split alone."""

    def texts() -> Iterator[str]:
        for number, document in enumerate(_read_spool(spool), 1):
            if splitter(document) == TRAIN:
                yield document.text
            if number % _REPORT_EVERY == 1:
                report(Progress("tokenizer", number, tally.kept, "documents", "counting"))
        report(Progress("tokenizer", tally.kept, tally.kept, "documents", "merging"))

    tokenizer = Tokenizer.train(texts(), config.tokenizer.vocab_size)
    note = f"{tokenizer.vocab_size} ids"
    if tokenizer.vocab_size < config.tokenizer.vocab_size:
        note += f": too little text for {config.tokenizer.vocab_size}"
    report(Progress("tokenizer", tally.kept, tally.kept, "documents", note))
    return tokenizer


def _encode(
    spool: Path,
    splitter: _Splitter,
    tokenizer: Tokenizer,
    writers: dict[str, ShardWriter],
    tally: _Tally,
    report: Report,
) -> dict[str, int]:
    """Encode every document to ``[EOT, ids…]`` in its split; return the text bytes of each split."""
    text_bytes = dict.fromkeys(writers, 0)
    tokens = done = 0
    for documents in _batches(_read_spool(spool)):
        encoded = tokenizer.encode_batch([document.text for document in documents])
        for document, ids in zip(documents, encoded, strict=True):
            split = splitter(document)
            text_bytes[split] += len(document.text.encode())
            writers[split].add(document.id, np.array([tokenizer.eot_id, *ids]))
            tokens += 1 + len(ids)
        done += len(documents)
        report(Progress("encode", done, tally.kept, "documents", f"{tokens} tokens"))
    return text_bytes


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Group documents into lists of about a million characters."""
    batch: list[Document] = []
    chars = 0
    for document in documents:
        batch.append(document)
        chars += len(document.text)
        if chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
