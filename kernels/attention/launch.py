"""From tensors to launches: output tensors, strides, grids and tiles.

Shapes: B rows, T queries, S keys, H query heads, K key/value heads, D head width, E document borders.
Packed documents are one row (B = 1) with borders; otherwise every row is one document.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from distllm.kernels.attention import backward, forward
from distllm.kernels.attention.tiles import (
    Kernel,
    Tile,
    delta_rows,
    padded,
    splits_key_grads,
    tile,
)
from distllm.kernels.device import architecture


@dataclass(frozen=True, slots=True)
class Features:
    """What is computed; see `distllm.kernels.attention.op.attention`.

    ``max_queries`` and ``max_keys`` bound the lengths of a document.
    """

    max_queries: int
    max_keys: int
    causal: bool
    window: int
    softcap: float
    scale: float


def choose_tile(kernel: Kernel, q_BTHD: Tensor) -> Tile:
    """Return the tile of a kernel for the device of ``q_BTHD``."""
    return tile(kernel, architecture(q_BTHD.device), q_BTHD.shape[-1], q_BTHD.dtype)


def constants(features: Features, head_dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return the compile-time arguments that all three kernels share."""
    return {
        "D": head_dim,
        "WIDTH": padded(head_dim),
        "CAUSAL": features.causal,
        "WINDOW": features.window,
        "SOFTCAP": features.softcap,
        "PRECISION": "ieee",
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
    }


def launch_forward(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    borders: tuple[Tensor | None, Tensor | None],
    sinks_H: Tensor | None,
    slopes_H: Tensor | None,
    features: Features,
) -> tuple[Tensor, Tensor]:
    """Return out_BTHD and lse_BHT."""
    batch, rows, heads, head_dim = q_BTHD.shape
    out_BTHD = q_BTHD.new_empty(q_BTHD.shape)
    lse_BHT = q_BTHD.new_empty((batch, heads, rows), dtype=accumulate(q_BTHD.dtype))
    cut = choose_tile("forward", q_BTHD)
    grid = (triton.cdiv(features.max_queries, cut.queries), documents(batch, borders) * heads)
    if out_BTHD.numel() and grid[0]:
        forward.forward_kernel[grid](
            q_BTHD, k_BSKD, v_BSKD, out_BTHD, lse_BHT, sinks_H, slopes_H, *borders,
            *streamed(cut, features, k_BSKD, v_BSKD), strides(q_BTHD), strides(k_BSKD), strides(v_BSKD),
            strides(out_BTHD), heads, heads // k_BSKD.shape[2], rows, k_BSKD.shape[1],
            features.scale / math.log(2), BLOCK_Q=cut.queries, BLOCK_K=cut.keys, num_warps=cut.warps,
            num_stages=cut.stages, **constants(features, head_dim, q_BTHD.dtype),
        )  # fmt: skip
    return out_BTHD, lse_BHT


def launch_backward(
    grads: tuple[Tensor, Tensor],
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    outputs: tuple[Tensor, Tensor],
    borders: tuple[Tensor | None, Tensor | None],
    slopes_H: Tensor | None,
    features: Features,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dq_BTHD, dk_BSKD, dv_BSKD and delta_BHT, of which the gradient of the sinks is a sum."""
    batch, rows, heads, head_dim = q_BTHD.shape
    (grad_BTHD, grad_lse_BHT), (out_BTHD, lse_BHT) = grads, outputs
    delta_BHT = torch.empty_like(lse_BHT)
    block = delta_rows(architecture(q_BTHD.device), head_dim)
    shared = constants(features, head_dim, q_BTHD.dtype)
    if out_BTHD.numel():
        backward.delta_kernel[(triton.cdiv(rows, block), batch * heads)](
            out_BTHD, grad_BTHD, lse_BHT, grad_lse_BHT, delta_BHT, strides(out_BTHD), strides(grad_BTHD),
            heads, rows, D=head_dim, WIDTH=padded(head_dim), BLOCK_Q=block, ACC=shared["ACC"],
        )  # fmt: skip
    dq_BTHD, dk_BSKD, dv_BSKD = (x.new_empty(x.shape) for x in (q_BTHD, k_BSKD, v_BSKD))
    inputs = (q_BTHD, k_BSKD, v_BSKD, grad_BTHD, lse_BHT, delta_BHT)
    shape = (strides(q_BTHD), strides(k_BSKD), strides(v_BSKD), strides(grad_BTHD))
    group, columns = heads // k_BSKD.shape[2], k_BSKD.shape[1]
    sizes = (heads, group, rows, columns, features.scale / math.log(2), features.scale)
    count = documents(batch, borders)
    apart = splits_key_grads(head_dim)
    wanted: list[tuple[Kernel, bool, bool]] = [("key_grads", True, not apart), ("value_grads", False, True)]
    for kernel, want_dk, want_dv in wanted[: 1 + apart] if dk_BSKD.numel() and features.max_keys else ():
        cut = choose_tile(kernel, q_BTHD)
        grid = (triton.cdiv(features.max_keys, cut.keys), count * k_BSKD.shape[2])
        backward.key_grads_kernel[grid](
            *inputs, dk_BSKD, dv_BSKD, slopes_H, *borders, *shape, strides(dk_BSKD), strides(dv_BSKD), *sizes,
            BLOCK_Q=cut.queries, BLOCK_K=cut.keys, WANT_DK=want_dk, WANT_DV=want_dv, num_warps=cut.warps,
            num_stages=cut.stages, **shared,
        )  # fmt: skip
    cut = choose_tile("query_grads", q_BTHD)
    grid = (triton.cdiv(features.max_queries, cut.queries), count * heads)
    if dq_BTHD.numel() and grid[0]:
        backward.query_grads_kernel[grid](
            *inputs, dq_BTHD, slopes_H, *borders, *streamed(cut, features, k_BSKD, v_BSKD), *shape,
            strides(dq_BTHD), *sizes, BLOCK_Q=cut.queries, BLOCK_K=cut.keys, num_warps=cut.warps,
            num_stages=cut.stages, **shared,
        )  # fmt: skip
    return dq_BTHD, dk_BSKD, dv_BSKD, delta_BHT


def streamed(
    cut: Tile, features: Features, k_BSKD: Tensor, v_BSKD: Tensor
) -> tuple[TensorDescriptor | None, TensorDescriptor | None]:
    """Describe keys and values to the tensor memory accelerator, if the tile uses it and they fit.

    Under a window no tile is seen by all queries, so none is loaded whole. The accelerator requires adjacent
    heads, a power of two of channels, and strides of 16 bytes (CUDA driver API, cuTensorMapEncodeTiled).
    """
    described = [_describe(x, cut.keys) for x in (k_BSKD, v_BSKD)]
    if not cut.streams or features.window or None in described:
        return None, None
    return described[0], described[1]


def _describe(x_BSKD: Tensor, rows: int) -> TensorDescriptor | None:
    """Return a descriptor of (row, position, channels of all heads) in tiles of ``rows`` of one head."""
    batch, length, heads, width = x_BSKD.shape
    step = x_BSKD.stride(1) if length > 1 else heads * width
    jump = x_BSKD.stride(0) if batch > 1 else length * step
    if not x_BSKD.numel() or width != padded(width) or not step or not jump or jump % step:
        return None
    aligned = all(size * x_BSKD.itemsize % 16 == 0 for size in (step, width)) and x_BSKD.data_ptr() % 16 == 0
    if not aligned or (heads > 1 and x_BSKD.stride(2) != width):
        return None
    return TensorDescriptor(x_BSKD, [batch, length, heads * width], [jump, step, 1], [1, rows, width])


def accumulate(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums: fp32, and fp64 for fp64 (in the interpreter, for numerical derivatives)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def strides(x_BTHD: Tensor) -> tuple[int, int, int]:
    """Return the strides of (row, position, head); a size of 1 has the stride 0, whatever it claims."""
    batch, row, head = (
        0 if size == 1 else step for size, step in zip(x_BTHD.shape[:3], x_BTHD.stride(), strict=False)
    )
    return batch, row, head


def documents(batch: int, borders: tuple[Tensor | None, Tensor | None]) -> int:
    """Return how many documents are attended to."""
    return batch if borders[0] is None else len(borders[0]) - 1


def sink_gradient(sinks_H: Tensor, lse_BHT: Tensor, delta_BHT: Tensor) -> Tensor:
    """Return dsinks_H: each sink's probability times what its (zero) value and log-sum-exp receive."""
    weights_BHT = torch.exp(sinks_H[:, None].to(lse_BHT.dtype) - lse_BHT)
    return -(weights_BHT * delta_BHT).sum(dim=(0, 2)).to(sinks_H.dtype)
