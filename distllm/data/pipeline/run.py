"""Preparation: the order of the stages, from raw input to the dataset directory.

read → clean → sign → duplicates → refine → tokenizer → encode → shards → finish

Every process that calls `prepare` with the same configuration walks through the same stages and
shares their tasks (see `work`), so one process, two, or a SLURM array give the same bytes.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distllm.config.schema import Config
from distllm.data.clean import marks_of_filters
from distllm.data.manifest import MANIFEST_FILE, Manifest, SourceCounts, SplitRecord
from distllm.data.pipeline.assemble import SplitPlan, link_shard, write_shards
from distllm.data.pipeline.assist import assistants
from distllm.data.pipeline.documents import REMOVED_FILE, clean_task, read_task, refine_task
from distllm.data.pipeline.duplicates import decide_duplicates, decontaminator_of
from distllm.data.pipeline.encode import encode_task, encoder_of, tokenizer_task
from distllm.data.pipeline.report import REPORT_FILE, SourceReport, as_json, gather, write_removed
from distllm.data.pipeline.sources import Source, Unit, find_units, settle_sources
from distllm.data.pipeline.work import Claim, Report, Result, WorkDirectory, address, claim, lock
from distllm.data.privacy import Scrubber
from distllm.data.privacy.canaries import CANARIES_FILE, Canaries, describe_canaries
from distllm.data.records import TEXT, Dropped, Progress
from distllm.data.shards import INDEX_FILE, IndexedShard, token_dtype, write_index
from distllm.data.split import SPLITS, Splitter
from distllm.data.staging import Staging
from distllm.data.tokenizer import TOKENIZER_FILES
from distllm.errors import DataError, RunDirectoryBusy
from distllm.fsio import atomic_write_json, digest_bytes, digest_file, storage_errors

WORK_SUFFIX = ".work"
_POLL_SECONDS = 0.1


def prepare(config: Config, report: Report | None = None, *, assisting: bool = False) -> Manifest:
    """Make the dataset directory ``config.data.out`` and return its manifest.

    A directory that the same configuration has made before is returned at once. Every item that
    a rule refused is listed in ``removed.jsonl`` with its reason.

    Args:
        config: what to prepare.
        report: called with how far each stage is.
        assisting: whether this process helps another one that has started it.

    Raises:
        DataError: a source cannot be used or nothing of it survives, or ``data.out`` holds
            something else.
        TokenizerError: ``tokenizer.path`` cannot be used.
        RunDirectoryBusy: another process is preparing the same directory with another configuration.
        StorageError: the disk is full or not writable; finished work stays for the next attempt.
    """
    out = Path(config.data.out)
    with storage_errors(out):
        if (existing := _find_existing(out, config)) is not None:
            return existing
        with _shared_identity(work_directory(config), out, config), assistants(config, assisting):
            kept = _documents(config, report or _ignore)
            return _dataset(config, kept)


def rehearse(config: Config, report: Report | None = None) -> dict[str, SourceReport]:
    """Run the document stages only and return what each rule would do; ``prepare`` reuses them."""
    out = Path(config.data.out)
    with storage_errors(out), _shared_identity(work_directory(config), out, config), assistants(config, True):
        return _documents(config, report or _ignore).reports()


def work_directory(config: Config) -> Path:
    """Return where finished stages are kept: ``data.work``, or beside the dataset."""
    out = Path(os.path.realpath(config.data.out))
    return Path(config.data.work) if config.data.work else out.with_name(out.name + WORK_SUFFIX)


def pipeline_identity(config: Config) -> dict[str, Any]:
    """Return what determines a dataset's content, by dotted path, as JSON values."""
    identity: dict[str, Any] = {}
    for source in settle_sources(config):
        identity[f"sources.{source.name}"] = {
            "paths": sorted(source.read.paths),
            "read": source.reading(),
            "clean": asdict(source.clean),
            "priority": source.priority,
        }
    for group in ("dedup", "privacy", "tokenizer"):
        identity |= {f"{group}.{key}": value for key, value in asdict(getattr(config, group)).items()}
    del identity["tokenizer.backend"]  # it changes no byte
    if not config.privacy.canaries.repeats:
        del identity["privacy.canaries"]  # nor do canaries that are not planted
    identity |= {
        "data.valid_fraction": config.data.valid_fraction,
        "data.shard_bytes": config.data.shard_bytes,
        "seed": config.seed,
    }
    return dict(json.loads(json.dumps(identity)))


def _ignore(_: Progress) -> None:
    """Do not report."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """The results of the document stages for each unit; the last ones are the documents."""

    config: Config
    work: WorkDirectory
    sources: list[Source]
    units: list[Unit]
    passed_over: Mapping[str, Sequence[Dropped]]
    stages: list[list[Result]]

    def reports(self, encoded: Sequence[Result] = ()) -> dict[str, SourceReport]:
        """Return the counts of every source."""
        return gather(self.units, self.passed_over, self.stages, encoded)

    def of_source(self, name: str, results: Sequence[Result]) -> tuple[Result, ...]:
        """Return those of ``results``, one for each unit, that belong to the source ``name``."""
        return tuple(
            result for unit, result in zip(self.units, results, strict=True) if unit.source.name == name
        )


def _documents(config: Config, report: Report) -> _Kept:
    """Run the stages that decide which documents there are and what they say."""
    work = WorkDirectory(work_directory(config), report)
    sources = settle_sources(config)
    found = [find_units(source) for source in sources]
    units = [unit for parts, _ in found for unit in parts]
    passed_over = {source.name: dropped for source, (_, dropped) in zip(sources, found, strict=True)}
    read = work.run("read", [read_task(unit) for unit in units])
    filters = {source.name: marks_of_filters(source.clean.filters) for source in sources}
    clean = work.run(
        "clean",
        [
            clean_task(unit, result, filters[unit.source.name])
            for unit, result in zip(units, read, strict=True)
        ],
    )
    removals = decide_duplicates(work, config, units, clean)
    decontaminator = decontaminator_of(config)
    # Planted after cleaning and deduplication, which would take the copies out again.
    rows = [
        result.facts["kept"] * (unit.source.fields == (TEXT,))
        for unit, result in zip(units, clean, strict=True)
    ]
    planted = Canaries.draw(config.privacy.canaries, config.seed).places(config.seed, rows)
    refined = work.run(
        "refine",
        [
            refine_task(unit, result, removed, config, decontaminator, copies)
            for unit, result, removed, copies in zip(units, clean, removals, planted, strict=True)
        ],
    )
    kept = _Kept(config, work, sources, units, passed_over, [read, clean, refined])
    if not any(result.facts["kept"] for result in refined):
        raise _nothing_survived(config, kept.reports())
    return kept


def _nothing_survived(config: Config, reports: Mapping[str, SourceReport]) -> DataError:
    reasons = [
        f"{count} {rule} (first: {report.samples[rule][0]['id']}: {report.samples[rule][0]['reason']})"
        for report in reports.values()
        for rule, count in report.dropped.items()
    ]
    read = sum(report.read for report in reports.values())
    return DataError(
        f"no document of the source {config.data.source!r} survived; "
        f"of {read} read: {'; '.join(reasons) or 'none'}",
        where="data.paths" if config.data.paths else "data.source",
        remedy="correct the source, its keys, or the rules of the clean group",
    )


def _dataset(config: Config, kept: _Kept) -> Manifest:
    """Run the stages from documents to the finished dataset directory."""
    work, refined = kept.work, kept.stages[-1]
    splitters = {
        source.name: Splitter.fit(
            config.seed,
            config.data.valid_fraction,
            [
                number
                for result in kept.of_source(source.name, refined)
                for number in result.facts["split_hashes"]
            ],
        )
        for source in kept.sources
    }
    (tokenizer,) = work.run("tokenizer", [tokenizer_task(config, kept.units, refined, splitters)])
    encoded = work.run(
        "encode",
        [
            encode_task(unit, result, splitters[unit.source.name], tokenizer, config.tokenizer.backend)
            for unit, result in zip(kept.units, refined, strict=True)
        ],
    )
    plans = [
        SplitPlan(
            source=source.name,
            split=split,
            fields=source.fields,
            units=kept.of_source(source.name, encoded),
            dtype=token_dtype(tokenizer.facts["vocab_size"]),
            shard_bytes=config.data.shard_bytes,
            fingerprint=tokenizer.facts["fingerprint"],
        )
        for source in kept.sources
        for split in SPLITS
    ]
    write_shards(work, plans, unless=lambda: is_dataset(Path(config.data.out)))
    return _finish(config, kept, tokenizer, encoded, plans)


def _finish(
    config: Config, kept: _Kept, tokenizer: Result, encoded: Sequence[Result], plans: Sequence[SplitPlan]
) -> Manifest:
    """Put the dataset together under its final name: one process does, the others wait for it."""
    out = Path(config.data.out)
    while (existing := _find_existing(out, config)) is None:
        with claim(kept.work.directory / f"finish-{_digest_of(out)}.lock") as whose:
            if whose is not Claim.TAKEN and not is_dataset(out):
                shards = write_shards(WorkDirectory(kept.work.directory, _ignore), plans)
                with Staging(out) as staging:
                    _assemble(config, kept, tokenizer, encoded, plans, shards, staging.directory)
                    staging.commit()
                for result in itertools.chain(*shards):
                    # This link would keep the content of a shard that is rewritten later.
                    shutil.rmtree(result.directory)
        if whose is Claim.TAKEN:
            time.sleep(_POLL_SECONDS)
    return existing


def _assemble(
    config: Config,
    kept: _Kept,
    tokenizer: Result,
    encoded: Sequence[Result],
    plans: Sequence[SplitPlan],
    shards: Sequence[Sequence[Result]],
    directory: Path,
) -> None:
    """Write the whole dataset into ``directory``, the manifest last."""
    reports = kept.reports(encoded)
    loaded = encoder_of(tokenizer.directory, config.tokenizer.backend)
    loaded.save(directory)
    files = [INDEX_FILE, *TOKENIZER_FILES]
    if config.privacy.canaries.repeats:
        found = describe_canaries(config.privacy.canaries, config.seed, loaded)
        atomic_write_json(directory / CANARIES_FILE, found)
        files.append(CANARIES_FILE)
    scrubber = Scrubber(config.privacy)
    write_removed(directory / REMOVED_FILE, kept.passed_over, kept.units, kept.stages, scrubber.clean)
    atomic_write_json(directory / REPORT_FILE, as_json(reports, scrubber.clean))
    index: dict[str, dict[str, list[IndexedShard]]] = {}
    sources: dict[str, dict[str, SplitRecord]] = {}
    for plan, results in zip(plans, shards, strict=True):
        linked = [link_shard(result, directory) for result in results]
        index.setdefault(plan.source, {})[plan.split] = linked
        sources.setdefault(plan.source, {})[plan.split] = _split_record(plan, linked)
    write_index(directory, index)
    Manifest(
        pipeline=pipeline_identity(config),
        inputs=address(
            [[unit.source.name, [part.fingerprint for part in unit.parts]] for unit in kept.units]
        ),
        tokenizer_fingerprint=loaded.fingerprint,
        vocab_size=loaded.vocab_size,
        eot_id=loaded.eot_id,
        token_dtype=token_dtype(loaded.vocab_size).name,
        fields={source.name: source.fields for source in kept.sources},
        sources=sources,
        counts={
            name: SourceCounts(
                read=report.read,
                kept=report.kept,
                dropped=dict(sorted(report.dropped.items())),
                edited=dict(sorted(report.edited.items())),
            )
            for name, report in sorted(reports.items())
        },
        files={name: digest_file(directory / name) for name in files},
    ).save(directory)


def _split_record(plan: SplitPlan, shards: Sequence[IndexedShard]) -> SplitRecord:
    total: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    for unit in plan.units:
        for language, counts in unit.facts["splits"][plan.split].items():
            total.update(counts)
            languages[language] += counts["documents"]
    return SplitRecord(
        tokens=total["tokens"],
        documents=total["documents"],
        text_bytes=total["bytes"],
        shards=tuple(shard.record for shard in shards),
        languages=dict(sorted(languages.items())),
    )


def is_dataset(directory: Path) -> bool:
    """Return whether ``directory`` holds a finished dataset."""
    return (directory / MANIFEST_FILE).is_file()


def _find_existing(out: Path, config: Config) -> Manifest | None:
    """Return the manifest in ``out`` if this configuration made it, None if there is nothing."""
    if not is_dataset(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(
                f"{out} exists and is not a prepared dataset",
                where="data.out",
                remedy="choose another data.out, or remove what is there",
            )
        return None
    manifest = Manifest.load(out)
    changes = _changes(manifest.pipeline, pipeline_identity(config))
    if changes:
        raise DataError(
            f"{out} was prepared with another configuration: {changes}",
            where="data.out",
            remedy=f"choose another data.out, or remove {out} and prepare again: "
            "stages that the change does not touch are not repeated",
        )
    manifest.check_sizes(out)
    return manifest


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{key} was {before.get(key)}, is {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    )


def _digest_of(out: Path) -> str:
    return digest_bytes(os.fsencode(os.path.realpath(out)))[:16]


@contextmanager
def _shared_identity(directory: Path, out: Path, config: Config) -> Iterator[None]:
    """Allow any number of processes on ``out`` at a time, as long as they prepare the same.

    Raises:
        RunDirectoryBusy: a live process prepares ``out`` with another configuration.
    """
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    identity = json.dumps(pipeline_identity(config), sort_keys=True)
    with (directory / f"identity-{_digest_of(out)}.json").open("a+", encoding="utf-8") as stream:
        if lock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB) is not Claim.TAKEN:
            stream.truncate(0)
            stream.write(identity)
            stream.flush()
        lock(stream.fileno(), fcntl.LOCK_SH)  # turns our own exclusive lock into a shared one
        stream.seek(0)
        if (other := stream.read()) != identity:
            raise RunDirectoryBusy(
                f"another process is preparing {out} with another configuration: "
                + _changes(json.loads(other), json.loads(identity)),
                where=str(directory),
                remedy="wait for it, stop it, or choose another data.out",
            )
        yield
