"""Find the checkpoint to resume from, and load it into any engine on any number of ranks.

Tensors are read one at a time by logical name from memory-mapped safetensors files; nothing that is read here
can run code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from distllm.checkpoint.commit import recover
from distllm.checkpoint.format import (
    CheckpointInfo,
    listed_files,
    newest_verified,
    read_state,
    step_path,
    verify,
)
from distllm.dist.collectives import broadcast_json, max_over_ranks
from distllm.dist.engine import Engine, read_checked
from distllm.dist.topology import Topology
from distllm.errors import CheckpointError, StorageError, error_from_facts


@dataclass(frozen=True, slots=True)
class Found:
    """A verified checkpoint.

    Attributes:
        step: training steps taken.
        path: its directory.
        optimizer_steps: updates applied.
        train_state: the values of `TrainState`.
        facts: what a resume compares the checkpoint with.
        set_aside: damaged newer checkpoints: where they are now, and why.
    """

    step: int
    path: Path
    optimizer_steps: int
    train_state: dict[str, Any]
    facts: dict[str, Any]
    set_aside: tuple[tuple[Path, str], ...] = ()


def find_checkpoint(
    directory: Path, topology: Topology | None = None, *, quarantine: bool = True, step: int | None = None
) -> Found | None:
    """Return the newest verified checkpoint in ``directory``, or None if there never was one.

    Collective if ``topology`` is given: rank 0 searches, and all ranks get its answer.

    Args:
        directory: the run's checkpoint directory.
        topology: this rank's place; None for a command that runs in one process.
        quarantine: set damaged checkpoints aside and clean up after dead writers; a command that does not
            own the run directory must pass False.
        step: consider only the checkpoint of this step; None is returned if it does not exist.

    Raises:
        CheckpointError: checkpoints exist, but none can be used; the one of ``step`` is damaged; or a rank
            does not see the files.
        StorageError: a file cannot be read or renamed.
    """
    topology = topology or Topology.single()
    answer: dict[str, Any] = {}
    if topology.is_main:
        try:
            answer = {"found": _search(Path(directory), quarantine, step)}
        except (CheckpointError, StorageError) as error:
            answer = error.facts()
    answer = broadcast_json(answer, topology)
    if "error" in answer:
        raise error_from_facts(answer)
    found = answer["found"]
    if found is None:
        return None
    path = step_path(directory, found["step"])
    _check_visible(path, topology)
    set_aside = tuple((Path(where), reason) for where, reason in found["set_aside"])
    return Found(
        found["step"], path, found["optimizer_steps"], found["train_state"], found["facts"], set_aside
    )


def _search(directory: Path, quarantine: bool, step: int | None) -> dict[str, Any] | None:
    if quarantine:
        recover(directory)
    info: CheckpointInfo | None = None
    damaged: list[tuple[Path, str]] = []
    if step is None:
        info, damaged = newest_verified(directory, quarantine=quarantine)
    elif step_path(directory, step).is_dir():
        info = verify(step_path(directory, step))
    if info is None:
        return None
    state = read_state(info.path)
    keys = ("step", "optimizer_steps", "train_state", "facts")
    return {key: state[key] for key in keys} | {"set_aside": [(str(path), why) for path, why in damaged]}


def _check_visible(path: Path, topology: Topology) -> None:
    """Check on all ranks that they see what rank 0 verified, so that either all of them stop or none."""
    (blind,) = max_over_ranks([0.0 if path.is_dir() else topology.rank + 1.0], topology)
    if blind:
        raise CheckpointError(
            f"rank {int(blind) - 1} does not see the checkpoint that rank 0 sees",
            where=str(path),
            remedy="put runs_dir on a file system that all machines share",
        )


def load_checkpoint(found: Found, engine: Engine) -> dict[str, Any]:
    """Load weights, moments and step counts into ``engine``; return the saved train state. Collective.

    Raises:
        CheckpointError: the checkpoint does not fit the engine's model.
    """
    with CheckpointReader.open(found.path) as reader:
        engine.load_state(reader.read, found.optimizer_steps)
        unread = reader.unread()
    _refuse_unread(unread, found.path)
    return found.train_state


def read_weights(found: Found, model: nn.Module, slot: str | None = None, scale: float = 1.0) -> None:
    """Load the trainable weights, and nothing else, into a whole model in one process.

    Args:
        found: the checkpoint.
        model: gets the weights.
        slot: load the optimizer's tensors of this name instead of the weights.
        scale: factor applied to the loaded values.

    Raises:
        CheckpointError: the checkpoint does not fit the model.
    """
    with CheckpointReader.open(found.path) as reader, torch.no_grad():
        learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        for name, parameter in learning.items():
            logical = f"model/{name}" if slot is None else f"optim/{slot}/{name}"
            parameter.copy_(read_checked(reader.read, logical, parameter.shape) * scale)
        kind = "model/" if slot is None else f"optim/{slot}/"
        unread = [name for name in reader.unread() if name.startswith(kind)]
    _refuse_unread(unread, found.path)


def _refuse_unread(unread: list[str], path: Path) -> None:
    if unread:
        raise CheckpointError(
            f"the checkpoint holds {len(unread)} tensors that this model lacks, such as {unread[0]}",
            where=str(path),
            remedy="use the model configuration the checkpoint was trained with",
        )


class CheckpointReader:
    """Reads tensors of one verified checkpoint lazily, by logical name, from the files in its manifest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        listed = [path / name for name in sorted(listed_files(path)) if name.endswith(".safetensors")]
        files: list[Any] = [safe_open(file, framework="pt") for file in listed]
        self._home = {name: file for file in files for name in file.keys()}  # noqa: SIM118  # no mapping
        self._read: set[str] = set()

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[CheckpointReader]:
        """Read ``path`` inside the block.

        Raises:
            CheckpointError: a file cannot be read, or no longer exists.
        """
        try:
            yield cls(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path.name} cannot be read: {error}",
                where=str(path),
                remedy="resume from another checkpoint",
            ) from error

    @property
    def names(self) -> list[str]:
        """The logical names of all tensors."""
        return sorted(self._home)

    def read(self, name: str) -> Tensor:
        """Return a tensor.

        Raises:
            CheckpointError: the checkpoint has no such tensor.
        """
        file = self._home.get(name)
        if file is None:
            raise CheckpointError(
                f"the checkpoint has no tensor {name}",
                where=str(self._path),
                remedy="resume with the model configuration the checkpoint was trained with",
            )
        self._read.add(name)
        tensor: Tensor = file.get_tensor(name)
        return tensor

    def unread(self) -> list[str]:
        """Return the names of tensors that were not read."""
        return sorted(set(self._home) - self._read)
