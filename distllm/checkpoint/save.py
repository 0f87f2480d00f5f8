"""Save a training run's state. Collective: every rank calls it at the same step.

Only rank 0 writes; the others take part in assembling each tensor. In the background, rank 0 copies
everything to main memory (12 bytes a parameter) and writes while the training goes on; at most one
such copy exists, and it shrinks file by file as it is written. Without it, or where there is no memory
for the copy, rank 0 writes as the tensors come and holds one file's worth of them.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from distllm.checkpoint.background import Background
from distllm.checkpoint.commit import transaction
from distllm.checkpoint.format import FORMAT, STATE, step_path
from distllm.checkpoint.mirror import Mirror
from distllm.checkpoint.retention import Retention, prune
from distllm.checkpoint.space import require_space
from distllm.checkpoint.tensors import safetensors_chunks
from distllm.dist.agree import agree, agree_at_leisure
from distllm.dist.engine import Engine
from distllm.dist.topology import Topology
from distllm.machine import available_memory
from distllm.units import format_bytes

FILE_BYTES = 512 * 2**20
_MEMORY_MARGIN = 1.1
_log = logging.getLogger(__name__)

_PACKAGES = ("distllm", "torch", "deepspeed", "safetensors")
Group = tuple[str, dict[str, Tensor]]


class Saver:
    """Writes the checkpoints of one run, one at a time.

    Args:
        directory: the run's checkpoint directory, owned by this run.
        topology: this rank's place.
        retention: which checkpoints stay; the rest goes after each save.
        background: return from `save` when the state is copied, and write meanwhile.
        expected_bytes: about the size of a checkpoint; with less space left nothing is begun.
        mirror: where each checkpoint is copied to, if anywhere; only then it counts as written.
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

    @property
    def pending(self) -> int | None:
        """The step that `save` was called for and `settle` was not; the same on every rank."""
        return self._pending

    @property
    def done(self) -> bool:
        """Whether this rank knows that the write has ended, well or not; only rank 0 does."""
        return self._worker.done

    def save(
        self,
        step: int,
        engine: Engine,
        train_state: dict[str, object],
        facts: dict[str, object],
        *,
        ephemeral: bool = False,
    ) -> None:
        """Take the state of now, and write it as the checkpoint of ``step``; `settle` tells how it went.

        Args:
            step: training steps taken.
            engine: weights and moments.
            train_state: numbers the loop resumes from, as JSON values.
            facts: what the checkpoint must be compared with on resume (config and dataset digests), as
                JSON values.
            ephemeral: it stays only while it is the newest.

        Raises:
            ValueError: the save before was not settled.
        """
        if self._pending is not None:
            raise ValueError(f"the checkpoint of step {self._pending} is still being written")
        self._pending = step
        state = _state_json(step, engine, train_state, facts, self._topology, ephemeral=ephemeral)
        tensors = engine.state()
        if self._topology.is_main:
            if self._background and self._has_memory():
                groups = list(_groups(tensors))
                self._worker.start(lambda: self._write(step, _taken(groups), state))
            else:
                self._worker.start_here(lambda: self._write(step, _groups(tensors), state))
        # The other ranks, and rank 0 after a failure, must still meet for every remaining tensor.
        for _ in tensors:
            pass

    def _has_memory(self) -> bool:
        free = available_memory()
        if free is None or free >= self._expected_bytes * _MEMORY_MARGIN:
            return True
        _log.warning(
            "no main memory for a copy of the state (%s, and %s are free): the training waits for this save",
            format_bytes(self._expected_bytes),
            format_bytes(free),
        )
        return False

    def settle(self) -> int | None:
        """Wait until the pending checkpoint is written; return its step. Collective.

        Raises:
            StorageError: on every rank, if rank 0 could not write. Earlier checkpoints are untouched.
        """
        step, self._pending = self._pending, None
        if step is None:
            return None
        agree_at_leisure(self._topology, self._worker.wait, self._worker.result)
        return step

    def reject_after(self, step: int, why: str) -> None:
        """Let nobody use a copy at the mirror that is newer than ``step``. Collective.

        Raises:
            StorageError: on every rank, if that cannot be written down.
        """
        agree(self._topology, lambda: self._mirror.reject_after(step, why) if self._mirror else None)

    def close(self) -> bool:
        """Wait for what rank 0 has begun, without the other ranks; return whether there was anything.

        Raises:
            StorageError: it could not be written.
        """
        if self._pending is None or not self._topology.is_main:
            return False
        self._pending = None
        self._worker.result()
        return True

    def _write(self, step: int, groups: Iterable[Group], state: bytes) -> None:
        require_space(self._directory, self._expected_bytes, f"the checkpoint of step {step}")
        with transaction(self._directory, step) as files:
            for name, tensors in groups:
                files.write(name, *safetensors_chunks(tensors))
            files.write(STATE, state)
        prune(self._directory, self._retention)
        if self._mirror is not None:
            self._mirror.send(step_path(self._directory, step))
            self._mirror.prune(self._retention)


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


def _taken(groups: list[Group]) -> Iterator[Group]:
    """Yield the groups in order and let go of each, so that its memory is free once it is written."""
    groups.reverse()
    while groups:
        yield groups.pop()


def _groups(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[Group]:
    """Cut the stream of tensors into files: by kind (model, optim), and by size."""
    group: dict[str, Tensor] = {}
    filled, number, kind = 0, 0, ""
    for name, tensor in tensors:
        starts_kind = name.split("/", 1)[0] != kind
        if group and (starts_kind or filled + tensor.nbytes > FILE_BYTES):
            yield f"{kind}-{number:05d}.safetensors", group
            group, filled, number = {}, 0, 0 if starts_kind else number + 1
        kind = name.split("/", 1)[0]
        group[name] = tensor
        filled += tensor.nbytes
    if group:
        yield f"{kind}-{number:05d}.safetensors", group
