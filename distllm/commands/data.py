"""`distllm data`: inspect prepared datasets, verify them, combine them, and remove documents from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distllm.commands.actions import Actions, run_action
from distllm.commands.arguments import parse_options
from distllm.config.options import option
from distllm.errors import ConfigError, DataError
from distllm.units import format_bytes, format_count

if TYPE_CHECKING:
    from distllm.data.manifest import Manifest

_ID = "id="


@dataclass(frozen=True)
class DatasetOptions:
    """Options of `distllm data verify` and `reindex`."""

    out: str | None = option(None, "the dataset directory")


@dataclass(frozen=True)
class StatsOptions:
    """Options of `distllm data stats`."""

    out: str | None = option(None, "the dataset directory")
    seq_len: int | None = option(None, "also say what packing into rows of this length wastes", minimum=2)


@dataclass(frozen=True)
class InspectOptions:
    """Options of `distllm data inspect`."""

    out: str | None = option(None, "the dataset directory")
    source: str | None = option(None, "the source; null means the only one")
    split: str = option("train", "the split, with document=")
    document: int | None = option(None, "number of a document in its split, from 0", minimum=0)
    id: str | None = option(None, "name of a document, instead of its number")


@dataclass(frozen=True)
class ForgetOptions:
    """Options of `distllm data forget`, besides any number of id=...."""

    out: str | None = option(None, "the dataset directory")
    source: str | None = option(None, "look for the ids in this source only")
    runs: str = option("runs", "directory that holds run directories")


def run(words: Sequence[str]) -> int:
    """Run the action that the first word names."""
    return run_action("data", "...", _ACTIONS, words)


def _dataset(out: str | None, action: str) -> Path:
    from distllm.commands.runs import require

    return Path(require(out, "out", f"data {action}"))


def _verify(words: Sequence[str]) -> None:
    directory = _dataset(parse_options("data verify", DatasetOptions, words).out, "verify")
    from distllm.data.shards import verify

    manifest = verify(directory)
    shards = sum(len(split.shards) for split in manifest.splits.values())
    size = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    print(f"dataset {directory}: {shards} shards, {format_bytes(size)}, all digests are correct")
    print(f"  digest {manifest.digest}")


def _inspect(words: Sequence[str]) -> None:
    options = parse_options("data inspect", InspectOptions, words)
    directory = _dataset(options.out, "inspect")
    import numpy as np

    from distllm.data.manifest import Manifest
    from distllm.data.shards import document_at, document_texts, find_documents, index_of, read_document
    from distllm.data.tokenizer import Tokenizer

    manifest = Manifest.load(directory)
    index = index_of(directory, manifest)
    dtype = np.dtype(manifest.token_dtype).newbyteorder("<")
    if options.id is not None:
        places = find_documents(directory, index, [options.id], options.source)
    elif options.document is not None:
        source = options.source or _only_source(directory, list(manifest.sources))
        places = [document_at(directory, index, source, options.split, options.document)]
    else:
        _describe(directory, manifest)
        return
    tokenizer = Tokenizer.load(directory)
    for place in places:
        ids = read_document(directory, index[place.source][place.split][place.shard], place.row, dtype)
        count = sum(ids_N.size for ids_N in ids.values())
        name = "(forgotten)" if place.id is None else place.id
        print(f"=== {place.source}/{place.split} document {place.number} · {count} tokens · {name}")
        for field, text in document_texts(ids, tokenizer).items():
            if len(ids) > 1:
                print(f"--- {field}")
            print("" if place.id is None else text)


def _only_source(directory: Path, sources: list[str]) -> str:
    if len(sources) != 1:
        raise ConfigError(
            f"{directory} has {len(sources)} sources",
            where="source",
            remedy=f"give source=..., one of: {', '.join(sources)}",
        )
    return sources[0]


def _stats(words: Sequence[str]) -> None:
    options = parse_options("data stats", StatsOptions, words)
    directory = _dataset(options.out, "stats")
    from distllm.data.manifest import Manifest
    from distllm.data.shards.stats import QUANTILES, split_stats

    manifest = Manifest.load(directory)
    for stats in split_stats(directory, manifest):
        if not stats.documents:
            print(f"{stats.source}/{stats.split}: no documents")
            continue
        print(
            f"{stats.source}/{stats.split}: {stats.documents} documents, "
            f"{format_count(stats.tokens)} tokens, {format_bytes(stats.text_bytes)} of text, "
            f"{stats.bytes_per_token:.3f} bytes/token, disk {stats.disk_ratio:.4f} x raw token bytes"
        )
        if stats.lengths:
            marks = (
                f"{quantile:.0%} {length}" for quantile, length in zip(QUANTILES, stats.lengths, strict=True)
            )
            print(f"  tokens a document: {', '.join(marks)}")
        for language, count in stats.languages.items():
            print(f"  language {language or 'unknown'}: {count} documents")
    if manifest.forgotten.count:
        print(f"forgotten documents: {manifest.forgotten.count}")
    if options.seq_len is not None:
        for split in manifest.splits:
            _print_packings(directory, split, options.seq_len)


def _print_packings(directory: Path, split: str, seq_len: int) -> None:
    from typing import get_args

    from distllm.data.packing import Packing
    from distllm.data.stream import PackedSplit

    for packing in get_args(Packing):
        packed = PackedSplit(directory, split, seq_len, packing=packing, too_long="cut")
        print(
            f"{split} as rows of {seq_len}, data.packing={packing}: "
            f"{packed.num_samples} rows, {packed.padding:.2%} padding"
        )


def _describe(directory: Path, manifest: Manifest) -> None:
    parts = [
        f"{source}/{split} {record.documents} documents, {format_count(record.tokens)} tokens"
        for source, splits in manifest.sources.items()
        for split, record in splits.items()
    ]
    print(f"{directory}  digest {manifest.digest}  vocabulary {manifest.vocab_size}")
    for part in parts:
        print(f"  {part}")


def _ls(words: Sequence[str]) -> None:
    if not words:
        raise ConfigError("which directory?", where="distllm data ls", remedy="distllm data ls DIR...")
    from distllm.data.manifest import MANIFEST_FILE, Manifest
    from distllm.data.shards.forget import PARTIAL

    places = [word.removeprefix("out=") for word in words]
    found = sorted({file.parent for place in places for file in Path(place).rglob(MANIFEST_FILE)})
    shown = 0
    for directory in found:
        if "checkpoints" in directory.parts or directory.name == PARTIAL:
            continue  # a checkpoint has a manifest of its own; a removal keeps the next one there
        try:
            _describe(directory, Manifest.load(directory))
        except DataError as error:
            print(f"{directory}  unusable: {error.cause}")
        shown += 1
    if not shown:
        raise DataError(
            f"no dataset below {', '.join(places)}",
            where="distllm data ls",
            remedy="make one with: distllm prepare",
        )


def _merge(words: Sequence[str]) -> None:
    directories = [Path(word) for word in words if "=" not in word]
    options = parse_options("data merge", DatasetOptions, [word for word in words if "=" in word])
    out = _dataset(options.out, "merge")
    if not directories:
        raise ConfigError(
            "which datasets?", where="distllm data merge", remedy="distllm data merge out=DIR A B ..."
        )
    from distllm.data.shards import merge

    _describe(out, merge(directories, out))


def _reindex(words: Sequence[str]) -> None:
    directory = _dataset(parse_options("data reindex", DatasetOptions, words).out, "reindex")
    from distllm.data.shards import reindex

    _describe(directory, reindex(directory))


def _forget(words: Sequence[str]) -> None:
    ids = [word.removeprefix(_ID) for word in words if word.startswith(_ID)]
    rest = [word for word in words if not word.startswith(_ID)]
    options = parse_options("data forget", ForgetOptions, rest)
    directory = _dataset(options.out, "forget")
    from distllm.commands.witnesses import witnesses
    from distllm.data.shards import forget

    removal = forget(directory, ids, options.source)
    for place in removal.places:
        print(f"forgot {place.id}: {place.source}/{place.split} document {place.number}")
    if not removal.places:
        print("nothing to do: no id=... was given, and no earlier removal is unfinished")
        return
    print("not changed: the raw input and a preparation's work directory; remove the documents there, too")
    for witness in witnesses(Path(options.runs), directory, removal):
        print(str(witness))


_ACTIONS: Actions = {
    "verify": (_verify, "out=DIR: recompute every digest, name every problem"),
    "inspect": (_inspect, "out=DIR [source= split= document=N | id=ID]: the exact text of a document"),
    "stats": (_stats, "out=DIR [seq_len=N]: documents, tokens, text, lengths and disk of every split"),
    "ls": (_ls, "DIR...: the datasets found below"),
    "merge": (_merge, "out=DIR A B ...: datasets of one tokenizer as one"),
    "reindex": (_reindex, "out=DIR: make index.json again from the tars"),
    "forget": (_forget, "out=DIR id=ID [id=...] [runs=runs]: remove documents, name the runs that saw them"),
}
