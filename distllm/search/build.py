"""Building an index: all ranks cut and embed the texts, and rank 0 writes a directory, whole or not at all.

The bytes do not depend on the number of ranks, nor on how often the build was stopped and started again:
batches are formed from the whole corpus, one rank with one thread embeds each, and rank 0 puts the
vectors into the order of the passages. Until then they lie beside the index, in ``OUT.work``.

Shapes: P passages, C channels.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray

from distllm.config.schema_read import ReadConfig
from distllm.data.records import Progress
from distllm.data.tokenizer import Tokenizer
from distllm.dist.agree import agree, agree_after_work
from distllm.dist.collectives import barrier, sum_over_ranks
from distllm.dist.topology import Topology
from distllm.errors import DataError, DistllmError
from distllm.evaluate.retrieval import BM25, VectorIndex, agreement, require_faiss, search_exact
from distllm.fsio import (
    atomic_directory,
    atomic_write_bytes,
    atomic_write_json,
    digest_file,
    fsync_file,
    refuse_other_kind,
)
from distllm.infer.batches import by_length
from distllm.search.corpus import Corpus, PassageWriter, Tell, find_corpus, read_passages
from distllm.search.encoder import Precision, TextEncoder
from distllm.search.index import FORMAT, MANIFEST, PASSAGES, VECTORS, WORDS
from distllm.search.parts import Part, parts_of

BATCH = 32
_PROBES, _PLACES = 100, 10
_POLL_SECONDS = 5.0


def build_index(
    encoder: TextEncoder,
    read: ReadConfig,
    out: Path,
    topology: Topology,
    *,
    passage_tokens: int,
    exact: bool,
    precision: Precision = "fp32",
    tell: Tell,
) -> dict[str, Any]:
    """Write an index of a corpus to the directory ``out``; return its manifest. Collective.

    A build that was stopped goes on with the passages and vectors that it has made.

    Args:
        encoder: the model.
        read: the corpus.
        out: the directory, on a file system that all ranks see; an earlier index there is replaced.
        topology: this rank's place.
        passage_tokens: ids of a passage at most.
        exact: whether a query is compared with all vectors, or with some of them in a graph.
        precision: of the matrix products that make the vectors.
        tell: shown how far this rank is.

    Raises:
        MissingDependency: faiss is not installed.
        ConfigError: ``out`` is not an index.
        DataError: the corpus holds no text.
        StorageError: the directory cannot be written.
    """
    require_faiss()
    torch.set_num_threads(1)  # sums in an order that no number of cores changes
    agree(topology, lambda: refuse_other_kind(out, MANIFEST))
    work = out.with_name(f"{out.name}.work")
    told = _read(read, encoder.tokenizer, min(passage_tokens, encoder.room), work / PASSAGES, topology, tell)
    texts = [passage.text for passage in read_passages((work / PASSAGES).read_bytes())]
    facts = encoder.facts()
    inputs = f"{facts['digest']} {precision} {topology.device.type}"
    parts = parts_of(batches_of(encoder.sizes(texts)), texts, work, inputs, facts["channels"])
    missing = agree_after_work(topology, lambda: _missing(parts, tell))
    _embed_own(encoder, texts, parts, missing, precision, topology, tell)
    barrier(topology)
    manifest = {
        "format": FORMAT,
        "model": facts,
        "texts": {**told, "source": read.source, "paths": list(read.paths)},
        "vectors": {"exact": exact, "agreement": None, "precision": precision},
    }
    return dict(agree_after_work(topology, lambda: _write(texts, parts, manifest, work, out, tell)))


def _read(
    read: ReadConfig, tokenizer: Tokenizer, longest: int, path: Path, topology: Topology, tell: Tell
) -> dict[str, Any]:
    """Write the passages of the corpus to ``path``; return the counts. Collective.

    All ranks cut groups of the corpus, and rank 0 joins them. What a rank cannot read is left to rank 0,
    whose error all ranks raise.
    """
    found = agree_after_work(topology, lambda: asdict(find_corpus(read)))
    writer = PassageWriter(Corpus.from_json(found), read, tokenizer, longest, path, tell)

    def write_own_share() -> None:
        with suppress(DistllmError):
            writer.write_share(topology.rank, topology.world_size)

    def write() -> dict[str, Any]:
        try:
            return asdict(writer.write())
        finally:
            with suppress(OSError):
                path.parent.rmdir()  # only if it is empty: of a corpus that cannot be read nothing is left

    if topology.world_size > 1:
        _work_together(topology, write_own_share)
    return dict(agree_after_work(topology, write))


def _work_together(topology: Topology, work: Callable[[], None]) -> None:
    """Run ``work`` on every rank until all have ended, however long that takes. Collective.

    No rank waits in one exchange for more than a few seconds, so none reaches the timeout of the group.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        job = thread.submit(work)
        running = True
        while running:
            wait([job], timeout=_POLL_SECONDS)
            running = sum_over_ranks([float(not job.done())], topology)[0] > 0
        job.result()


def batches_of(sizes: Sequence[int]) -> list[list[int]]:
    """Return the passages of each batch, by number; those of a batch have similar lengths."""
    return by_length(sizes, BATCH)


def _missing(parts: Sequence[Part], tell: Tell) -> list[int]:
    """Return which parts are not on the disk yet."""
    if not any(part.file.is_file() for part in parts):
        return list(range(len(parts)))
    tell(Progress("check", 0, len(parts), "parts"))
    missing = [number for number, part in enumerate(parts) if part.load() is None]
    tell(Progress("check", len(parts), len(parts), "parts", f"{len(parts) - len(missing)} made before"))
    return missing


def _embed_own(
    encoder: TextEncoder,
    texts: Sequence[str],
    parts: Sequence[Part],
    missing: Sequence[int],
    precision: Precision,
    topology: Topology,
    tell: Tell,
) -> None:
    """Embed every R-th missing part, the longest texts first, so that a lack of memory shows early."""
    own = [parts[number] for number in missing[::-1][topology.rank :: topology.world_size]]
    total, done = sum(len(part.places) for part in own), 0
    note = f"rank {topology.rank} of {topology.world_size}" if topology.world_size > 1 else ""
    for part in own:
        vectors = []
        for batch in part.batches:
            vectors.append(encoder.embed([texts[place] for place in batch], precision))
            done += len(batch)
            tell(Progress("embed", done, total, "passages", note))
        part.store(np.concatenate(vectors))


def _gathered(parts: Sequence[Part]) -> NDArray[np.float32]:
    """Return the vectors_PC of all parts in the order of the passages.

    Raises:
        DataError: a part is missing.
    """
    vector_PC = np.empty((sum(len(part.places) for part in parts), parts[0].channels), dtype=np.float32)
    for part in parts:
        vectors_NC = part.load()
        if vectors_NC is None:
            raise DataError(
                "rank 0 does not see vectors that a rank has made",
                where=str(part.file),
                remedy="put out=... on a file system that all machines share, and let one build at a time "
                "write to it; the same command goes on with what is there",
            )
        vector_PC[part.places] = vectors_NC
    return vector_PC


def _write(
    texts: Sequence[str],
    parts: Sequence[Part],
    manifest: dict[str, Any],
    work: Path,
    out: Path,
    tell: Tell,
) -> dict[str, Any]:
    """Write the index, remove the work directory, and return the manifest. On rank 0 only."""
    tell(Progress("index", 0, len(texts), "passages"))
    vector_PC = _gathered(parts)
    index = VectorIndex(vector_PC, exact=manifest["vectors"]["exact"])
    if not manifest["vectors"]["exact"]:
        manifest["vectors"]["agreement"] = _agreement(index, vector_PC)
    with atomic_directory(out, MANIFEST, work / "index") as staging:
        shutil.copyfile(work / PASSAGES, staging / PASSAGES)
        fsync_file(staging / PASSAGES)
        atomic_write_bytes(staging / VECTORS, index.to_bytes())
        atomic_write_bytes(staging / WORDS, safetensors.numpy.save(BM25(texts).to_arrays()))
        manifest["files"] = {
            name: {"bytes": (staging / name).stat().st_size, "digest": digest_file(staging / name)}
            for name in (PASSAGES, VECTORS, WORDS)
        }
        manifest["texts"]["digest"] = manifest["files"][PASSAGES]["digest"]
        atomic_write_json(staging / MANIFEST, manifest)
    shutil.rmtree(work, ignore_errors=True)
    tell(Progress("index", len(texts), len(texts), "passages"))
    return manifest


def _agreement(index: VectorIndex, vector_PC: NDArray[np.float32]) -> float:
    """Return the share of the true neighbours of some passages that the graph finds."""
    probe_QC = vector_PC[:: max(1, len(vector_PC) // _PROBES)]
    places = min(_PLACES, len(vector_PC))
    return agreement(index.search(probe_QC, places), search_exact(probe_QC, vector_PC, places))
