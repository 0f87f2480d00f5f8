"""Tensors in memory-mapped files, which hold fp32 weights and moments with ``engine.offload=nvme``.

The kernel reads pages when an update touches them and writes them back when it needs memory, so they occupy
only memory that is free. The files are unlinked at once: however the process ends, nothing is left on the disk.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from distllm.errors import StorageError


class MappedFiles:
    """Creates tensors in files under ``directory``, one file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def moved(self, tensor: Tensor) -> Tensor:
        """Return a copy of a CPU tensor that is stored in a file.

        Raises:
            StorageError: the disk has no space for it, or the directory cannot be written.
        """
        if tensor.numel() == 0:
            return tensor
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix="distllm-offload-") as file:
                # Reserve the space now: writing to a mapping on a full disk kills the process.
                os.posix_fallocate(file.fileno(), 0, tensor.nbytes)
                mapped = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
        except OSError as error:
            raise StorageError(
                f"cannot create a file of {tensor.nbytes} bytes for fp32 weights and moments: {error}",
                where=f"engine.offload_dir={self._directory}",
                remedy="choose an engine.offload_dir with more space, or divide them among more ranks",
            ) from error
        return mapped.view(tensor.shape).copy_(tensor)
