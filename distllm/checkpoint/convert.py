"""The weights of a checkpoint as one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from distllm.checkpoint.load import CheckpointReader, Found
from distllm.checkpoint.tensors import safetensors_chunks
from distllm.fsio import atomic_open

_PREFIX = "model/"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Format = Literal["fp32", "bf16", "fp16"]


def write_weights(found: Found, out: Path, dtype: Format, metadata: Mapping[str, str]) -> int:
    """Write the weights of a verified checkpoint to the file ``out``, whole or not at all.

    The names are those of the model's parameters; a parameter that two modules share is written once.

    Args:
        found: the checkpoint.
        out: the file to write.
        dtype: number format of the weights; they are stored in fp32.
        metadata: strings for the file's header.

    Returns:
        The bytes of the weights.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        StorageError: the disk is full or not writable.
    """
    with CheckpointReader.open(found.path) as reader:
        weights: dict[str, Tensor] = {
            name.removeprefix(_PREFIX): reader.read(name).to(_DTYPES[dtype])
            for name in reader.names
            if name.startswith(_PREFIX)
        }
        with atomic_open(out) as stream:
            for chunk in safetensors_chunks(weights, {"format": "pt", **metadata}):
                stream.write(chunk)
    return sum(weight.nbytes for weight in weights.values())
