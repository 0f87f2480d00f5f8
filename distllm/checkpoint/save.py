"""Save a training run's state. Collective: every rank calls it at the same step.

Only rank 0 writes; the others take part in assembling each tensor. Memory is bounded: beside the
model, rank 0 holds one file's worth of tensors and its bytes.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
from torch import Tensor

from distllm.checkpoint.commit import prune, transaction
from distllm.checkpoint.format import FORMAT, STATE, step_path
from distllm.dist.collectives import broadcast_json
from distllm.dist.engine import Engine
from distllm.dist.topology import Topology
from distllm.errors import StorageError

FILE_BYTES = 512 * 2**20

_PACKAGES = ("distllm", "torch", "deepspeed", "safetensors")


def save_checkpoint(
    directory: Path,
    *,
    step: int,
    engine: Engine,
    train_state: dict[str, object],
    facts: dict[str, object],
    topology: Topology,
    keep_last: int,
) -> Path:
    """Write the checkpoint of ``step``, then remove all but the newest ``keep_last``.

    Only rank 0 writes now; writing from all ranks and in the background are a later matter.

    Args:
        directory: the run's checkpoint directory, owned by this run.
        step: training steps taken.
        engine: weights and moments.
        train_state: numbers the loop resumes from, as JSON values.
        facts: what the checkpoint must be compared with on resume (config and dataset digests), as
            JSON values.
        topology: this rank's place.
        keep_last: how many checkpoints stay.

    Returns:
        The path of the checkpoint, on every rank.

    Raises:
        StorageError: on every rank, if rank 0 could not write. Earlier checkpoints are untouched.
    """
    path = step_path(directory, step)
    state = _state_json(step, engine, train_state, facts, topology)
    tensors = engine.state()
    failure: dict[str, str | None] | None = None
    if topology.is_main:
        try:
            _write(directory, step, tensors, state)
            prune(directory, keep_last)
        except StorageError as error:
            failure = {"cause": error.cause, "where": error.where, "remedy": error.remedy}
    # The other ranks, and rank 0 after a failure, must still meet for every remaining tensor.
    for _ in tensors:
        pass
    failure = broadcast_json(failure, topology)
    if failure is not None:
        raise StorageError(str(failure["cause"]), where=failure["where"], remedy=failure["remedy"])
    return path


def _state_json(
    step: int,
    engine: Engine,
    train_state: dict[str, object],
    facts: dict[str, object],
    topology: Topology,
) -> bytes:
    content = {
        "format": FORMAT,
        "step": step,
        "optimizer_steps": engine.optimizer_steps,
        "train_state": train_state,
        "facts": facts,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "written_by": {"world_size": topology.world_size, "device": topology.device.type},
    }
    return json.dumps(content, indent=2).encode()


def _write(directory: Path, step: int, tensors: Iterator[tuple[str, Tensor]], state: bytes) -> None:
    with transaction(directory, step) as files:
        for name, group in _groups(tensors):
            files.write(name, safetensors.torch.save(group))
        files.write(STATE, state)


def _groups(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, dict[str, Tensor]]]:
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
