"""Tile sizes of the attention kernels, one explicit row per architecture, head width and number format.

Nothing is tuned at run time: all tiles were compiled by the compile gate. The rows are the largest
tiles that compile without spills and with the architecture's own matrix instructions; they have not
been timed on a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from distllm.kernels.device import INTERPRETER

HEAD_DIMS = (64, 96, 128, 192, 256)
Kernel = Literal["forward", "key_grads", "query_grads", "value_grads"]
Width = Literal["half", "single"]


@dataclass(frozen=True, slots=True)
class Tile:
    """How one kernel is cut: query rows, key rows, warps of a program, stages of the load pipeline.

    With ``streams``, tiles that are seen whole are loaded by the tensor memory accelerator.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    streams: bool = False


# Head widths that are not a power of two use the row of the next power. A row holds the tiles of the forward
# pass, of dK and dV, and of dQ.
_ROWS: dict[tuple[int, int, Width], tuple[Tile, Tile, Tile]] = {
    (80, 64, "half"): (Tile(128, 64, 8, 3), Tile(32, 128, 8, 2), Tile(128, 64, 8, 2)),
    (80, 128, "half"): (Tile(128, 64, 8, 3), Tile(32, 64, 8, 2), Tile(64, 64, 8, 2)),
    (80, 256, "half"): (Tile(64, 64, 8, 2), Tile(64, 64, 8, 1), Tile(64, 64, 8, 2)),
    (80, 64, "single"): (Tile(32, 32, 4, 1), Tile(32, 32, 8, 1), Tile(32, 32, 4, 1)),
    (80, 128, "single"): (Tile(16, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 16, 8, 1)),
    (80, 256, "single"): (Tile(16, 32, 8, 1), Tile(16, 16, 8, 1), Tile(32, 16, 8, 1)),
    (90, 64, "half"): (Tile(128, 128, 8, 2, True), Tile(64, 64, 8, 2), Tile(128, 64, 8, 2, True)),
    (90, 128, "half"): (Tile(128, 64, 8, 3, True), Tile(32, 64, 8, 2), Tile(128, 64, 8, 2, True)),
    (90, 256, "half"): (Tile(128, 64, 8, 2), Tile(16, 128, 8, 1), Tile(64, 32, 8, 2, True)),
    (90, 64, "single"): (Tile(32, 32, 4, 1), Tile(32, 32, 8, 1), Tile(32, 32, 4, 1)),
    (90, 128, "single"): (Tile(16, 16, 8, 1), Tile(32, 32, 8, 1), Tile(32, 16, 8, 1)),
    (90, 256, "single"): (Tile(16, 32, 8, 1), Tile(16, 32, 8, 1), Tile(16, 16, 8, 1)),
    (100, 64, "half"): (Tile(128, 64, 8, 2, True), Tile(64, 64, 8, 2), Tile(128, 64, 8, 2, True)),
    (100, 128, "half"): (Tile(128, 64, 8, 3, True), Tile(32, 64, 8, 1), Tile(128, 64, 8, 2, True)),
    (100, 256, "half"): (Tile(128, 32, 8, 2, True), Tile(32, 64, 8, 1), Tile(128, 32, 8, 1, True)),
    (100, 64, "single"): (Tile(32, 32, 4, 1), Tile(32, 32, 8, 1), Tile(32, 32, 4, 1)),
    (100, 128, "single"): (Tile(16, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 16, 8, 1)),
    (100, 256, "single"): (Tile(16, 32, 8, 1), Tile(16, 32, 8, 1), Tile(16, 16, 8, 1)),
    (120, 64, "half"): (Tile(128, 64, 8, 3), Tile(32, 128, 8, 2), Tile(128, 64, 8, 2)),
    (120, 128, "half"): (Tile(128, 64, 8, 3), Tile(32, 64, 8, 2), Tile(64, 32, 8, 2)),
    (120, 256, "half"): (Tile(64, 32, 8, 1), Tile(32, 64, 8, 1), Tile(64, 16, 8, 1)),
    (120, 64, "single"): (Tile(32, 32, 4, 1), Tile(32, 32, 8, 1), Tile(32, 32, 4, 1)),
    (120, 128, "single"): (Tile(16, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 16, 8, 1)),
    (120, 256, "single"): (Tile(16, 32, 8, 1), Tile(16, 16, 8, 1), Tile(16, 16, 8, 1)),
}
_KERNELS: tuple[Kernel, ...] = ("forward", "key_grads", "query_grads")
# Where dV is launched apart from dK, and needs another tile.
_VALUE_GRADS: dict[tuple[int, int, Width], Tile] = {
    (100, 256, "half"): Tile(64, 64, 8, 1),
    (120, 256, "single"): Tile(16, 16, 16, 1),
}
# The interpreter has neither registers nor warps; unequal sides tell a query from a key.
UNCOMPILED = Tile(32, 16, 1, 1, streams=True)
_DELTA_ROWS = {64: 64, 128: 64, 256: 32}


def padded(head_dim: int) -> int:
    """Return ``head_dim`` rounded up to a power of two, the width of a tile."""
    return 1 << (head_dim - 1).bit_length()


def number_width(dtype: torch.dtype) -> Width:
    """Return which rows a dtype uses; fp32 products are computed without tensor cores."""
    return "half" if dtype.itemsize == 2 else "single"


def tile(kernel: Kernel, arch: int, head_dim: int, dtype: torch.dtype) -> Tile:
    """Return the tile of a kernel on architecture ``arch``."""
    if arch == INTERPRETER:
        return UNCOMPILED
    key = arch, padded(head_dim), number_width(dtype)
    if kernel == "value_grads":
        return _VALUE_GRADS.get(key) or tile("key_grads", arch, head_dim, dtype)
    return _ROWS[key][_KERNELS.index(kernel)]


def delta_rows(arch: int, head_dim: int) -> int:
    """Return the rows a program of the delta kernel takes."""
    return UNCOMPILED.queries if arch == INTERPRETER else _DELTA_ROWS[padded(head_dim)]


def splits_key_grads(head_dim: int) -> bool:
    """Whether dK and dV are computed by two launches: their accumulators would not fit together."""
    return padded(head_dim) > 128
