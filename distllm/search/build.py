"""Building an index: texts cut, embedded by all ranks, and written as one directory that is whole or absent.

The bytes do not depend on the number of ranks: batches are those of the whole corpus, each is embedded
by one rank with one thread, and rank 0 puts the vectors in the order of the passages.

Shapes: P passages, B of one batch, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray

from distllm.config.schema_read import ReadConfig
from distllm.data.records import Progress
from distllm.dist.agree import agree, agree_after_work
from distllm.dist.collectives import barrier
from distllm.dist.topology import Topology
from distllm.errors import DataError
from distllm.evaluate.retrieval import BM25, VectorIndex, agreement, require_faiss, search_exact
from distllm.fsio import (
    atomic_directory,
    atomic_open,
    atomic_write_bytes,
    atomic_write_json,
    digest_file,
)
from distllm.search.corpus import Written, read_passages, write_passages
from distllm.search.encoder import Precision, TextEncoder
from distllm.search.index import FORMAT, MANIFEST, PASSAGES, VECTORS, WORDS

BATCH = 32
_PROBES, _PLACES = 100, 10
Tell = Callable[[Progress], None]


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

    Args:
        encoder: the model.
        read: the corpus.
        out: the directory, on a file system that all ranks see; an earlier index there is replaced.
        topology: this rank's place.
        passage_tokens: ids of a passage at most.
        exact: whether vectors are compared with all; else with part of them, in a graph.
        precision: of the matrix products that make the vectors.
        tell: shown how far this rank has come.

    Raises:
        MissingDependency: faiss is not installed.
        ConfigError: ``out`` is something else than an index.
        DataError: the corpus holds no text.
        StorageError: the directory cannot be written.
    """
    require_faiss()
    torch.set_num_threads(1)  # sums in an order that no number of cores changes
    with ExitStack() as stack:
        path = agree(topology, lambda: str(stack.enter_context(atomic_directory(out, MANIFEST))))
        staging = Path(path)
        longest = min(passage_tokens, encoder.room)
        tell(Progress("read", 0, None, "documents"))
        told = agree_after_work(
            topology, lambda: asdict(write_passages(read, encoder.tokenizer, longest, staging / PASSAGES))
        )
        texts = [passage.text for passage in read_passages((staging / PASSAGES).read_bytes())]
        batches = batches_of(encoder.sizes(texts))
        _embed_own(encoder, texts, batches, precision, staging, topology, tell)
        barrier(topology)
        manifest: dict[str, Any] = agree_after_work(
            topology,
            lambda: _finish(
                encoder, read, Written(**told), texts, batches, precision, staging, topology, exact
            ),
        )
    return manifest


def batches_of(sizes: Sequence[int]) -> list[list[int]]:
    """Return the passages of each batch, by their ids: of like lengths, so little is padding."""
    order = sorted(range(len(sizes)), key=lambda place: (sizes[place], place))
    return [order[at : at + BATCH] for at in range(0, len(order), BATCH)]


def _embed_own(
    encoder: TextEncoder,
    texts: Sequence[str],
    batches: Sequence[list[int]],
    precision: Precision,
    staging: Path,
    topology: Topology,
    tell: Tell,
) -> None:
    """Embed every R-th batch and write the vectors, batch after batch."""
    own = batches[topology.rank :: topology.world_size]
    total, done = sum(map(len, own)), 0
    vectors = [np.empty((0, encoder.model.shape.hidden_size), dtype=np.float32)]
    for batch in own:
        vectors.append(encoder.embed([texts[place] for place in batch], precision))
        done += len(batch)
        tell(Progress("embed", done, total, "passages"))
    with atomic_open(_part(staging, topology.rank)) as stream:
        np.save(stream, np.concatenate(vectors), allow_pickle=False)


def _part(staging: Path, rank: int) -> Path:
    return staging / f"part-{rank:05d}.npy"


def _gathered(batches: Sequence[list[int]], staging: Path, world_size: int) -> NDArray[np.float32]:
    """Return the vectors_PC of all ranks in the order of the passages; their files are removed."""
    parts = []
    for rank in range(world_size):
        file = _part(staging, rank)
        if not file.is_file():
            raise DataError(
                f"rank 0 does not see the vectors of rank {rank}",
                where=str(file),
                remedy="put out=... on a file system that all machines share",
            )
        parts.append(
            (list(chain.from_iterable(batches[rank::world_size])), np.load(file, allow_pickle=False))
        )
        file.unlink()
    vector_PC = np.empty((sum(map(len, batches)), parts[0][1].shape[1]), dtype=np.float32)
    for places, vectors in parts:
        vector_PC[places] = vectors
    return vector_PC


def _finish(
    encoder: TextEncoder,
    read: ReadConfig,
    written: Written,
    texts: Sequence[str],
    batches: Sequence[list[int]],
    precision: Precision,
    staging: Path,
    topology: Topology,
    exact: bool,
) -> dict[str, Any]:
    """Write both indexes and the manifest, on rank 0; return the manifest."""
    vector_PC = _gathered(batches, staging, topology.world_size)
    index = VectorIndex(vector_PC, exact=exact)
    atomic_write_bytes(staging / VECTORS, index.to_bytes())
    atomic_write_bytes(staging / WORDS, safetensors.numpy.save(BM25(texts).to_arrays()))
    files = {
        name: {"bytes": (staging / name).stat().st_size, "digest": digest_file(staging / name)}
        for name in (PASSAGES, VECTORS, WORDS)
    }
    manifest = {
        "format": FORMAT,
        "model": encoder.facts,
        "texts": {
            **asdict(written),
            "source": read.source,
            "paths": list(read.paths),
            "digest": files[PASSAGES]["digest"],
        },
        "vectors": {
            "exact": exact,
            "agreement": None if exact else _agreement(index, vector_PC),
            "precision": precision,
        },
        "files": files,
    }
    atomic_write_json(staging / MANIFEST, manifest)
    return manifest


def _agreement(index: VectorIndex, vector_PC: NDArray[np.float32]) -> float:
    """Return how much of the true neighbours of some passages the graph finds."""
    probe_QC = vector_PC[:: max(1, len(vector_PC) // _PROBES)]
    places = min(_PLACES, len(vector_PC))
    return agreement(index.search(probe_QC, places), search_exact(probe_QC, vector_PC, places))
