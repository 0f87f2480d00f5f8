"""Save a training run's state. Collective: every rank calls it at the same step.

Every rank writes a share of about the same size: whole tensors of weights and moments by logical name. So
nothing on disk depends on the number of ranks, and no machine has to hold or write everything. With
background saving, a rank copies its share to main memory and writes it while training continues; at most
one such copy exists, and it shrinks file by file. Without it, or without enough memory for the copy, the
rank writes tensors as they come and holds only one file's worth.

Rank 0 begins the checkpoint, and commits it once every rank has written. The writing threads do not
communicate: their results are gathered between steps by all ranks at once, so that a rank with a full disk
blocks no other.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distllm.checkpoint.background import Background
from distllm.checkpoint.commit import Files, abandon, begin, commit, write_errors
from distllm.checkpoint.format import FORMAT, STATE, FileRecord, step_path
from distllm.checkpoint.mirror import Mirror
from distllm.checkpoint.retention import Retention, prune
from distllm.checkpoint.space import require_space
from distllm.checkpoint.tensors import safetensors_chunks
from distllm.dist.agree import agree, agree_when_done
from distllm.dist.collectives import gather_json, max_over_ranks
from distllm.dist.engine import Engine
from distllm.dist.topology import Topology
from distllm.errors import StorageError, error_from_facts
from distllm.machine import available_memory
from distllm.units import format_bytes

FILE_BYTES = 512 * 2**20
_MEMORY_MARGIN = 1.1
_POLL_SECONDS = 5.0
_log = logging.getLogger(__name__)

_PACKAGES = ("distllm", "torch", "deepspeed", "safetensors")
File = tuple[str, dict[str, Tensor]]


class Saver:
    """Writes the checkpoints of one run, one at a time.

    Args:
        directory: the run's checkpoint directory, owned by this run.
        topology: this rank's place.
        retention: which checkpoints are kept; the rest is removed after each save.
        background: return from `save` when the state is copied, and write in the background.
        expected_bytes: about the size of a checkpoint; with less free space no save is begun.
        mirror: where each checkpoint is copied to, if anywhere; it counts as written only after that.
    """

    def __init__(
        self,
        directory: Path,
        topology: Topology,
        retention: Retention,
        *,
        background: bool = False,
        expected_bytes: int = 0,
        mirror: Mirror | None = None,
    ) -> None:
        self._directory = directory
        self._topology = topology
        self._retention = retention
        self._background = background
        self._expected_bytes = expected_bytes
        self._mirror = mirror
        self._worker = Background()
        self._pending: int | None = None
        self._refused: StorageError | None = None
        self._files: Files | None = None
        self._partial = Path()
        self._committing = False

    @property
    def pending(self) -> int | None:
        """The step whose save is not settled yet, or None; the same on every rank."""
        return self._pending

    @property
    def done(self) -> bool:
        """Whether this rank has finished its share or failed; once all have, whether rank 0 has committed."""
        if self._pending is None:
            return False
        return self._worker.done or self._refused is not None or self._worker.idle

    def save(
        self,
        step: int,
        engine: Engine,
        train_state: dict[str, object],
        facts: dict[str, object],
        *,
        ephemeral: bool = False,
    ) -> None:
        """Write the current state as the checkpoint of ``step``; `settle` raises any error.

        Args:
            step: training steps taken.
            engine: weights and moments.
            train_state: the values of `TrainState`, as JSON values.
            facts: what a resume compares the checkpoint with (configuration, dataset digest), as JSON values.
            ephemeral: it is kept only while it is the newest.

        Raises:
            ValueError: the previous save was not settled.
        """
        if self._pending is not None:
            raise ValueError(f"the checkpoint of step {self._pending} is still being written")
        self._pending, self._committing, self._refused = step, False, None
        state = _state_json(step, engine, train_state, facts, self._topology, ephemeral=ephemeral)
        try:
            self._partial = Path(agree(self._topology, lambda: self._begin(step)))
        except StorageError as error:
            self._refused = error  # on every rank; `settle` raises it
            return
        self._files = Files(self._partial)
        tensors = engine.state(Shares(self._topology.world_size))
        files = _files(tensors, self._topology)
        if self._background and self._has_memory():
            copied = list(files)
            self._worker.start(lambda: self._write(step, _taken(copied), state))
        else:
            self._worker.start_here(lambda: self._write(step, files, state))
        # After a failure this rank must still take part in the collectives for every remaining tensor.
        for _ in tensors:
            pass

    def _begin(self, step: int) -> str:
        require_space(self._directory, self._expected_bytes, f"the checkpoint of step {step}")
        return str(begin(self._directory, step))

    def _has_memory(self) -> bool:
        """Whether the copies of all ranks of this machine fit into its memory."""
        needed = self._expected_bytes * self._topology.local_world_size // self._topology.world_size
        free = available_memory()
        if free is None or free >= needed * _MEMORY_MARGIN:
            return True
        _log.warning(
            "not enough main memory to copy the state (%s, and %s are free): training waits for this save",
            format_bytes(needed),
            format_bytes(free),
        )
        return False

    def proceed(self) -> bool:
        """Begin or finish the commit, once every rank is `done`; return whether it is finished. Collective.

        Raises:
            StorageError: see `settle`.
        """
        if self._pending is not None and not self._committing:
            self._join_shares(self._pending)
            return False
        return self.settle() is not None

    def settle(self) -> int | None:
        """Wait until the pending checkpoint is written; return its step. Collective.

        Raises:
            StorageError: on every rank, if any rank could not write. Earlier checkpoints are not affected.
        """
        step = self._pending
        if step is None:
            return None
        if not self._committing:
            self._join_shares(step)
        self._pending = None
        agree_when_done(self._topology, self._worker.wait, self._worker.result)
        return step

    def _join_shares(self, step: int) -> None:
        """Wait for every rank's share; rank 0 then begins the commit, or removes the files of a failure."""
        if self._refused is not None:
            self._pending = None
            raise self._refused
        while max_over_ranks([not self._worker.wait(_POLL_SECONDS)], self._topology)[0]:
            pass
        shares = gather_json(self._own_share(), self._topology)
        failed = next(((rank, share) for rank, share in enumerate(shares) if "cause" in share), None)
        if failed is not None:
            self._pending = None
            if self._topology.is_main:
                abandon(self._partial)
            rank, why = failed
            of_rank = f" (rank {rank})" if self._topology.world_size > 1 else ""
            raised = error_from_facts({**why, "cause": f"{why['cause']}{of_rank}"})
            raised.everywhere = True
            raise raised
        self._committing = True
        if self._topology.is_main:
            records = {name: FileRecord(**record) for share in shares for name, record in share.items()}
            start = self._worker.start if self._background else self._worker.start_here
            start(lambda: self._commit(step, records))

    def _own_share(self) -> dict[str, Any]:
        """Return the records of this rank's files, or the facts of its error."""
        assert self._files is not None
        try:
            self._worker.result()
        except StorageError as error:
            return error.facts()
        return {name: asdict(record) for name, record in self._files.records.items()}

    def reject_after(self, step: int, why: str) -> None:
        """Reject copies at the mirror that are newer than ``step``. Collective.

        Raises:
            StorageError: on every rank, if the mark cannot be written.
        """
        agree(self._topology, lambda: self._mirror.reject_after(step, why) if self._mirror else None)

    def close(self) -> bool:
        """Finish a pending save without the other ranks; return whether a checkpoint was written.

        A checkpoint that other ranks are still writing is lost.

        Raises:
            StorageError: it could not be written.
        """
        step, self._pending = self._pending, None
        if step is None or not self._topology.is_main:
            return False
        if self._refused is not None:
            raise self._refused
        self._worker.result()
        if not self._committing and self._topology.world_size == 1 and self._files is not None:
            self._commit(step, self._files.records)
        elif not self._committing:
            abandon(self._partial)
            return False
        return True

    def _write(self, step: int, files: Iterator[File], state: bytes) -> None:
        """Write the share of this rank."""
        assert self._files is not None
        with write_errors(self._directory, step):
            for name, tensors in files:
                self._files.write(name, *safetensors_chunks(tensors))
            if self._topology.is_main:
                self._files.write(STATE, state)

    def _commit(self, step: int, records: Mapping[str, FileRecord]) -> None:
        try:
            commit(self._partial, self._directory, step, records)
        except BaseException:
            abandon(self._partial)
            raise
        prune(self._directory, self._retention)
        if self._mirror is not None:
            self._mirror.send(step_path(self._directory, step))
            self._mirror.prune(self._retention)


class Shares:
    """Assigns each tensor to the rank with the fewest elements so far.

    Args:
        world_size: number of ranks.
    """

    def __init__(self, world_size: int) -> None:
        self._numel = [0] * world_size

    def __call__(self, shape: torch.Size) -> int:
        """Return the rank of the next tensor, which has this shape."""
        owner = min(range(len(self._numel)), key=self._numel.__getitem__)
        self._numel[owner] += shape.numel()
        return owner


def _state_json(
    step: int,
    engine: Engine,
    train_state: dict[str, object],
    facts: dict[str, object],
    topology: Topology,
    *,
    ephemeral: bool,
) -> bytes:
    content = {
        "format": FORMAT,
        "step": step,
        "optimizer_steps": engine.optimizer_steps,
        "ephemeral": ephemeral,
        "train_state": train_state,
        "facts": facts,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "written_by": {"world_size": topology.world_size, "device": topology.device.type},
    }
    return json.dumps(content, indent=2).encode()


def _taken(files: list[File]) -> Iterator[File]:
    """Yield the files in order without keeping them, so that their memory is freed once they are written."""
    files.reverse()
    while files:
        yield files.pop()


def _files(tensors: Iterator[tuple[str, Tensor]], topology: Topology) -> Iterator[File]:
    """Cut the stream of a rank's tensors into files: by kind (model, optim), and by size.

    The files of each kind have the numbers r, r + R, r + 2R, ... on rank r of R.
    """
    group: dict[str, Tensor] = {}
    filled, number, kind = 0, topology.rank, ""
    for name, tensor in tensors:
        starts_kind = name.split("/", 1)[0] != kind
        if group and (starts_kind or filled + tensor.nbytes > FILE_BYTES):
            yield f"{kind}-{number:05d}.safetensors", group
            group, filled = {}, 0
            number = topology.rank if starts_kind else number + topology.world_size
        kind = name.split("/", 1)[0]
        group[name] = tensor
        filled += tensor.nbytes
    if group:
        yield f"{kind}-{number:05d}.safetensors", group
