"""Tile sizes of the attention kernels, one explicit row per architecture, head width and number format.

Nothing is tuned at run time: what ships is what the compile gate has compiled. The rows are the largest
tiles that compile without spills and with the architecture's own matrix instructions; they have not
been timed on a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from distllm.kernels.device import INTERPRETER

HEAD_DIMS = (64, 96, 128, 192, 256)
Kernel = Literal["forward", "key_grads", "query_grads"]
Width = Literal["half", "single"]


@dataclass(frozen=True, slots=True)
class Tile:
    """How one kernel is cut: query rows, key rows, warps of a program, stages of the load pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


# Head widths that are no power of two use the row of the next one. On 100 and 120 no tile of 256 has
# compiled without spills: those widths are refused there.
_ROWS: dict[tuple[int, int, Width], tuple[Tile, Tile, Tile]] = {
    (80, 64, "half"): (Tile(128, 64, 8, 3), Tile(32, 128, 8, 2), Tile(128, 64, 8, 2)),
    (80, 128, "half"): (Tile(128, 64, 8, 3), Tile(32, 64, 8, 2), Tile(64, 64, 8, 2)),
    (80, 256, "half"): (Tile(64, 64, 8, 2), Tile(64, 64, 8, 1), Tile(64, 64, 8, 2)),
    (90, 64, "half"): (Tile(128, 128, 8, 2), Tile(64, 64, 8, 2), Tile(128, 64, 8, 2)),
    (90, 128, "half"): (Tile(128, 64, 8, 3), Tile(32, 64, 8, 2), Tile(128, 64, 8, 2)),
    (90, 256, "half"): (Tile(128, 64, 8, 2), Tile(16, 128, 8, 1), Tile(64, 32, 8, 2)),
    (100, 64, "half"): (Tile(128, 64, 8, 3), Tile(64, 64, 8, 2), Tile(128, 64, 8, 2)),
    (100, 128, "half"): (Tile(128, 64, 8, 3), Tile(32, 64, 8, 1), Tile(128, 64, 8, 2)),
    (120, 64, "half"): (Tile(128, 64, 8, 3), Tile(32, 128, 8, 2), Tile(128, 64, 8, 2)),
    (120, 128, "half"): (Tile(128, 64, 8, 3), Tile(32, 64, 8, 2), Tile(64, 32, 8, 2)),
}
_SINGLE = {
    64: (Tile(32, 32, 4, 1), Tile(32, 32, 8, 1), Tile(32, 32, 4, 1)),
    128: (Tile(16, 32, 8, 1), Tile(32, 32, 8, 1), Tile(32, 16, 8, 1)),
    256: (Tile(16, 32, 8, 1), Tile(16, 16, 8, 1), Tile(16, 16, 8, 1)),
}
_KERNELS: tuple[Kernel, ...] = ("forward", "key_grads", "query_grads")
# The interpreter has neither registers nor warps; unequal sides tell a query from a key.
UNCOMPILED = Tile(32, 16, 1, 1)
_DELTA_ROWS = {64: 64, 128: 64, 256: 32}


def padded(head_dim: int) -> int:
    """Return ``head_dim`` rounded up to a power of two, the width of a tile."""
    return 1 << (head_dim - 1).bit_length()


def number_width(dtype: torch.dtype) -> Width:
    """Return which rows a dtype uses; fp32 products are computed without tensor cores."""
    return "half" if dtype.itemsize == 2 else "single"


def tile(kernel: Kernel, arch: int, head_dim: int, dtype: torch.dtype) -> Tile:
    """Return the tile of a kernel on architecture ``arch``.

    Raises:
        ValueError: there is none for this head width.
    """
    if arch == INTERPRETER:
        return UNCOMPILED
    width = padded(head_dim)
    if number_width(dtype) == "single":
        return _SINGLE[width][_KERNELS.index(kernel)]
    rows = _ROWS.get((arch, width, "half"))
    if rows is None:
        raise ValueError(f"attention: there is no tile for the head size {head_dim} on sm_{arch}")
    return rows[_KERNELS.index(kernel)]


def delta_rows(arch: int, head_dim: int) -> int:
    """Return the rows a program of the delta kernel takes."""
    return UNCOMPILED.queries if arch == INTERPRETER else _DELTA_ROWS[padded(head_dim)]


def splits_key_grads(head_dim: int) -> bool:
    """Whether dK and dV are computed by two launches: their accumulators would not fit together."""
    return padded(head_dim) > 128
