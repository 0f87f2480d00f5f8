"""What the attention kernels share: tiles in memory, who sees whom, and the scores.

Positions are counted inside one document (or row). Query ``i`` stands at key position ``i + shift``
with ``shift = keys - queries``, so the last query sees the last key (bottom-right alignment). Scores
and log-sum-exps inside the kernels are in base 2, whose exponential is one instruction.

Offsets of rows are 64-bit scalars and offsets inside a tile 32-bit vectors: no tensor is too large,
and no register pair is spent per element.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def document(
    QUERY_BORDERS: tl.tensor, KEY_BORDERS: tl.tensor, z: tl.tensor, queries: int, keys: int
) -> tl.tuple:
    """Return (batch row, first query row, queries, first key row, keys) of document ``z``."""
    if QUERY_BORDERS is None:
        zero = z * 0
        return z, zero, zero + queries, zero, zero + keys
    else:  # noqa: RET505  # the compiler would read on after a return, to where there are no borders
        first_query = tl.load(QUERY_BORDERS + z)
        first_key = tl.load(KEY_BORDERS + z)
        num_queries = tl.load(QUERY_BORDERS + z + 1) - first_query
        num_keys = tl.load(KEY_BORDERS + z + 1) - first_key
        return z * 0, first_query, num_queries, first_key, num_keys


@triton.jit
def row_base(X: tl.tensor, strides: tl.tuple, batch: tl.tensor, row: tl.tensor, head: tl.tensor) -> tl.tensor:
    """Point at channel 0 of a row; ``strides`` are those of (batch, row, head)."""
    return (
        X + batch.to(tl.int64) * strides[0] + row.to(tl.int64) * strides[1] + head.to(tl.int64) * strides[2]
    )


@triton.jit
def tile_offsets(stride: tl.tensor, ROWS: tl.constexpr, WIDTH: tl.constexpr) -> tl.tensor:
    """Return offsets [ROWS, WIDTH] of a tile from its first row's channel 0."""
    return tl.arange(0, ROWS)[:, None] * stride + tl.arange(0, WIDTH)[None, :]


@triton.jit
def tile_mask(
    rows_left: tl.tensor, D: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, CHECK_ROWS: tl.constexpr
) -> tl.tensor:
    """Return which elements of a tile exist, or None if all do; WIDTH is D rounded to a power of two."""
    if CHECK_ROWS:
        mask = tl.arange(0, ROWS)[:, None] < rows_left
        if WIDTH != D:
            mask = mask & (tl.arange(0, WIDTH)[None, :] < D)
    elif WIDTH != D:
        mask = tl.arange(0, WIDTH)[None, :] < D
    else:
        mask = None
    return mask


@triton.jit
def load_tile(
    base: tl.tensor,
    stride: tl.tensor,
    rows_left: tl.tensor,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHECK_ROWS: tl.constexpr,
) -> tl.tensor:
    """Load [ROWS, WIDTH] from ``base`` on, zeros where there is nothing."""
    pointers = base + tile_offsets(stride, ROWS, WIDTH)
    if CHECK_ROWS or WIDTH != D:
        return tl.load(pointers, mask=tile_mask(rows_left, D, ROWS, WIDTH, CHECK_ROWS), other=0.0)
    return tl.load(pointers)


@triton.jit
def stream_tile(
    TILES: tl.tensor,
    batch: tl.tensor,
    row: tl.tensor,
    head: tl.tensor,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """Load [ROWS, WIDTH] of a head by the tensor memory accelerator; all of it must exist.

    TILES describes (batch, row, channels of all heads): one thread asks for a tile, no register holds an
    address of it.
    """
    return TILES.load([batch, row, head * WIDTH]).reshape(ROWS, WIDTH)


@triton.jit
def store_tile(
    base: tl.tensor,
    stride: tl.tensor,
    values: tl.tensor,
    rows_left: tl.tensor,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Store what exists of a tile, in the dtype of the memory."""
    pointers = base + tile_offsets(stride, ROWS, WIDTH)
    tl.store(pointers, values.to(base.dtype.element_ty), mask=tile_mask(rows_left, D, ROWS, WIDTH, True))


@triton.jit
def visible(
    distance: tl.tensor, key: tl.tensor, keys: tl.tensor, CAUSAL: tl.constexpr, WINDOW: tl.constexpr
) -> tl.tensor:
    """Return whether a query sees a key, given ``distance`` = query + shift - key."""
    seen = key < keys
    if CAUSAL:
        seen = seen & (distance >= 0)
    if WINDOW > 0:
        seen = seen & (distance < WINDOW)
        if not CAUSAL:
            seen = seen & (distance > -WINDOW)
    return seen


@triton.jit
def bend(
    product: tl.tensor, factor: tl.tensor, distance: tl.tensor, slope: tl.tensor, SOFTCAP: tl.constexpr
) -> tl.tuple:
    """Turn products q·k into base-2 scores; also return the derivative of the soft cap.

    ``factor`` is the scale times log2(e). The cap is ``c tanh(s / c)`` (Gemma 2); ``slope`` is None or
    ALiBi's (Press et al. 2022).
    """
    bend_slope = 1.0
    if SOFTCAP > 0:
        grown = tl.exp2(product * (factor * (2.0 / SOFTCAP)))
        tanh = 1.0 - 2.0 / (grown + 1.0)
        scores = tanh * (SOFTCAP * LOG2E)
        bend_slope = 1.0 - tanh * tanh
    else:
        scores = product * factor
    if slope is not None:
        scores = scores - tl.abs(distance).to(scores.dtype) * (slope * LOG2E)
    return scores, bend_slope


@triton.jit
def key_range(
    first: tl.tensor,
    keys: tl.tensor,
    shift: tl.tensor,
    ROWS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
) -> tl.tuple:
    """Return the keys [begin, end) that any of the queries [first, first + ROWS) sees."""
    begin = first * 0
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, first + ROWS + shift)
    if WINDOW > 0:
        begin = tl.maximum(0, first + shift - WINDOW + 1)
        if not CAUSAL:
            end = tl.minimum(keys, first + ROWS + shift + WINDOW - 1)
    return begin, end


@triton.jit
def query_range(
    first: tl.tensor,
    queries: tl.tensor,
    shift: tl.tensor,
    COLUMNS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
) -> tl.tuple:
    """Return the queries [begin, end) that see any of the keys [first, first + COLUMNS)."""
    begin = first * 0
    end = queries
    if CAUSAL:
        begin = tl.maximum(0, first - shift)
    if WINDOW > 0:
        end = tl.minimum(queries, first + COLUMNS - shift + WINDOW - 1)
        if not CAUSAL:
            begin = tl.maximum(0, first - shift - WINDOW + 1)
    return begin, end
