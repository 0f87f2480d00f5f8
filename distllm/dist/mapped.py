"""Tensors in files that are mapped into memory: where fp32 weights and moments live with ``engine.offload=nvme``.

The kernel reads pages of them as an update touches them and writes them back when it needs the memory, so
they fill no more of it than is free. The files lose their names at once: whatever ends the process, nothing
stays on the disk.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from distllm.errors import StorageError


class MappedFiles:
    """Makes tensors in files under ``directory``, one file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def moved(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor of the CPU that lives in a file.

        Raises:
            StorageError: the disk has no room for it, or the directory cannot be written.
        """
        if tensor.numel() == 0:
            return tensor
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix="distllm-offload-") as file:
                # Room is claimed now: a mapping that finds none when it is written to kills the process.
                os.posix_fallocate(file.fileno(), 0, tensor.nbytes)
                mapped = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
        except OSError as error:
            raise StorageError(
                f"no file of {tensor.nbytes} bytes for fp32 weights and moments: {error}",
                where=f"engine.offload_dir={self._directory}",
                remedy="choose an engine.offload_dir with more room, or more ranks, among which they divide",
            ) from error
        return mapped.view(tensor.shape).copy_(tensor)
