"""The stages that decide what repeats: sign every unit, then one decision over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from distllm.config.schema import Config
from distllm.config.schema_dedup import DedupConfig
from distllm.data import dedup
from distllm.data.dedup import Decontaminator, Removals, SignedDocuments
from distllm.data.manifest import Manifest
from distllm.data.pipeline.sources import Unit
from distllm.data.pipeline.spool import read_batches
from distllm.data.pipeline.work import Result, Task, Tick, WorkDirectory, address
from distllm.data.records import Document

_VERSIONS = {"sign": 2, "duplicates": 2}
_BATCH = 1024


def decide_duplicates(
    work: WorkDirectory, config: Config, units: Sequence[Unit], clean: Sequence[Result]
) -> list[Removals]:
    """Return what goes from each unit."""
    seen = [_sign_dataset(Path(path), config.dedup) for path in config.dedup.against]
    signed = work.run("sign", [*seen, *(_sign_unit(result, config.dedup) for result in clean)])
    known = [
        dedup.Unit(SignedDocuments(result.directory), source=path, fixed=True)
        for path, result in zip(config.dedup.against, signed, strict=False)
    ]
    fresh = [
        dedup.Unit(SignedDocuments(result.directory), unit.source.name, unit.source.priority)
        for unit, result in zip(units, signed[len(seen) :], strict=True)
    ]

    def perform(directory: Path, tick: Tick) -> Mapping[str, Any]:
        decisions = dedup.decide([*known, *fresh], config.dedup, directory)[len(known) :]
        saved = [
            Removals.save(directory / _name(number), decision) for number, decision in enumerate(decisions)
        ]
        tick(size)
        return {"digests": [removals.digest for removals in saved]}

    size = sum(int(result.facts["text_bytes"]) for result in clean)
    places = [[unit.source, unit.priority, unit.fixed] for unit in (*known, *fresh)]
    digests = [result.digest for result in signed]
    key = address("duplicates", _VERSIONS["duplicates"], asdict(config.dedup), places, digests)
    (decided,) = work.run("duplicates", [Task(key, max(1, size), perform)])
    return [
        Removals(decided.directory / _name(number), digest)
        for number, digest in enumerate(decided.facts["digests"])
    ]


def decontaminator_of(config: Config) -> Decontaminator:
    """Return what drops the documents that overlap with evaluation sets."""
    return Decontaminator(config.dedup.decontaminate, config.dedup.decontaminate_ngram)


def _name(unit: int) -> str:
    return f"{unit:06d}.json"


def _sign_unit(clean: Result, config: DedupConfig) -> Task:
    key = address("sign", _VERSIONS["sign"], _signing_keys(config), clean.digest)
    size = max(1, int(clean.facts["text_bytes"]))
    return Task(key, size, partial(_sign, read_batches(clean.directory), config))


def _sign_dataset(directory: Path, config: DedupConfig) -> Task:
    manifest = Manifest.load(directory)
    key = address("sign", _VERSIONS["sign"], _signing_keys(config), "dataset", manifest.digest)
    size = sum(split.text_bytes for split in manifest.splits.values())
    return Task(key, max(1, size), partial(_sign, _in_batches(dedup.stored_documents(directory)), config))


def _sign(
    batches: Iterator[list[Document]], config: DedupConfig, directory: Path, tick: Tick
) -> Mapping[str, Any]:
    def counted() -> Iterator[list[Document]]:
        done = 0
        for batch in batches:
            yield batch
            done += sum(len(text) for document in batch for text in document.fields.values())
            tick(done)

    dedup.sign(counted(), directory, config)
    return {}


def _signing_keys(config: DedupConfig) -> list[Any]:
    """Return what signatures depend on; the bound of similarity and the others only matter later."""
    shingles = [config.ngram, config.permutations, config.minhash_seed] if config.near else []
    return [config.pieces, config.min_piece_chars, *shingles]


def _in_batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    for document in documents:
        batch.append(document)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
