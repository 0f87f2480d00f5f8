"""Launch parameters the pointwise kernels share."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

ELEMENTS = 1024  # of a program of an elementwise kernel: 8 per thread of 4 warps, one 128-bit access in bf16


def row_warps(block: int) -> int:
    """Return the warps for a program that holds ``block`` columns of a row in registers."""
    return min(max(block // 256, 1), 16)


def accumulate(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of statistics and sums: fp32, and fp64 for fp64 (in the interpreter)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def accumulate_type(dtype: torch.dtype) -> Any:
    """Return Triton's name of `accumulate`."""
    return tl.float64 if dtype == torch.float64 else tl.float32
