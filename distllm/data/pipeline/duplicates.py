"""The stages that find duplicates: sign every unit, then decide over all of them."""

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
from distllm.data.pipeline.sources import Unit
from distllm.data.pipeline.spool import read_batches
from distllm.data.pipeline.work import Result, Task, Tick, WorkDirectory, address
from distllm.data.records import Document
from distllm.data.shards import IndexedShard
from distllm.data.tokenizer import Tokenizer

_VERSIONS = {"sign": 3, "duplicates": 2}
_BATCH = 1024


def decide_duplicates(
    work: WorkDirectory, config: Config, units: Sequence[Unit], clean: Sequence[Result]
) -> list[Removals]:
    """Return what each unit loses."""
    seen = [(path, task) for path in config.dedup.against for task in _sign_dataset(Path(path), config.dedup)]
    fresh_tasks = [_sign_unit(result, config.dedup) for result in clean]
    signed = work.run("sign", [*(task for _, task in seen), *fresh_tasks])
    known = [
        dedup.Unit(SignedDocuments(result.directory), source=path, fixed=True)
        for (path, _), result in zip(seen, signed, strict=False)
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
    """Return the filter that drops documents which overlap with evaluation sets."""
    return Decontaminator(config.dedup.decontaminate, config.dedup.decontaminate_ngram)


def _name(unit: int) -> str:
    return f"{unit:06d}.json"


def _sign_unit(clean: Result, config: DedupConfig) -> Task:
    key = address("sign", _VERSIONS["sign"], _signing_keys(config), clean.digest)
    size = max(1, int(clean.facts["text_bytes"]))
    return Task(key, size, partial(_sign, read_batches(clean.directory), config))


def _sign_dataset(directory: Path, config: DedupConfig) -> list[Task]:
    """Return one task for each shard of a dataset."""
    shards, tokenizer = dedup.stored_shards(directory), Tokenizer.load(directory)

    def task(shard: IndexedShard) -> Task:
        content = [tokenizer.fingerprint, shard.record.digest, shard.ids.digest]
        key = address("sign", _VERSIONS["sign"], _signing_keys(config), "shard", content)

        def perform(out: Path, tick: Tick) -> Mapping[str, Any]:
            return _sign(_in_batches(dedup.shard_documents(directory, shard, tokenizer)), config, out, tick)

        return Task(key, max(1, shard.record.bytes), perform)

    return [task(shard) for shard in shards]


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
    """Return the keys that signatures depend on; the others only matter for the decision."""
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
