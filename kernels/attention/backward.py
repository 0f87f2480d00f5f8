"""The backward kernels: delta, then dK and dV per tile of keys, then dQ per tile of queries.

Each gradient has one writer that sums in a fixed order, so two runs give the same bits. The price is
that the scores are computed twice. dK and dV work on the transposed scores K Qᵀ: their second products
then take both operands as they are, which Hopper's matrix instruction wants.

With P the probabilities and dO the upstream gradient (Dao 2023, section 3.2, and an upstream gradient
of the log-sum-exp): dV = Pᵀ dO; dP = dO Vᵀ; dS = P * (dP - delta) with delta = rowsum(dO * O) - dLSE.
"""

from __future__ import annotations

import triton
import triton.language as tl

from distllm.kernels.attention.scores import (
    LOG2E,
    bend,
    document,
    key_range,
    load_tile,
    query_range,
    row_base,
    store_tile,
    stream_tile,
    visible,
)


@triton.jit
def delta_kernel(
    OUT: tl.tensor, GRAD: tl.tensor, LSE: tl.tensor, GRAD_LSE: tl.tensor, DELTA: tl.tensor,
    out_strides: tl.tuple, grad_strides: tl.tuple, heads: int, rows: int, D: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr, ACC: tl.constexpr,
) -> None:  # fmt: skip
    """Write ``rowsum(dO * O) - dLSE`` of one tile of rows; a row that saw no key has no dLSE."""
    batch = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    first = tl.program_id(0) * BLOCK_Q
    row = first + tl.arange(0, BLOCK_Q)
    out_base = row_base(OUT, out_strides, batch, first, head)
    grad_base = row_base(GRAD, grad_strides, batch, first, head)
    out = load_tile(out_base, out_strides[1], rows - first, D, BLOCK_Q, WIDTH, True).to(ACC)
    grad = load_tile(grad_base, grad_strides[1], rows - first, D, BLOCK_Q, WIDTH, True).to(ACC)
    offset = tl.program_id(1).to(tl.int64) * rows + row
    lse = tl.load(LSE + offset, mask=row < rows, other=0.0)
    grad_lse = tl.load(GRAD_LSE + offset, mask=row < rows, other=0.0)
    delta = tl.sum(out * grad, 1) - tl.where(lse == float("-inf"), 0.0, grad_lse)
    tl.store(DELTA + offset, delta, mask=row < rows)


@triton.jit
def key_grads_of_range(
    dk: tl.tensor, dv: tl.tensor, k: tl.tensor, v: tl.tensor, Q: tl.tensor, GRAD: tl.tensor, LSE: tl.tensor,
    DELTA: tl.tensor, q_stride: tl.tensor, grad_stride: tl.tensor, begin: tl.tensor, end: tl.tensor,
    key: tl.tensor, queries: tl.tensor, keys: tl.tensor, factor: tl.tensor, slope: tl.tensor, D: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr, WANT_DK: tl.constexpr,
    WANT_DV: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Add what the queries [begin, end) of one head give to dK (without the scale) and dV.

    Queries past the end weigh nothing: their log-sum-exp reads as +inf.
    """
    for start in tl.range(begin, end, BLOCK_Q):
        query = start + tl.arange(0, BLOCK_Q)
        left = queries - start
        q = load_tile(Q + tl.cast(start, tl.int64) * q_stride, q_stride, left, D, BLOCK_Q, WIDTH, True)
        grad = load_tile(
            GRAD + tl.cast(start, tl.int64) * grad_stride, grad_stride, left, D, BLOCK_Q, WIDTH, True
        )
        lse = tl.load(LSE + query, mask=query < queries, other=float("inf"))
        distance = query[None, :] + (keys - queries) - key[:, None]
        product = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        scores, bend_slope = bend(product, factor, distance, slope, SOFTCAP)
        weights = tl.exp2(scores - (lse * LOG2E)[None, :])
        if MASKED:
            weights = tl.where(visible(distance, key[:, None], keys, CAUSAL, WINDOW), weights, 0.0)
        if WANT_DV:
            dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision=PRECISION, out_dtype=dv.dtype)
        if WANT_DK:
            delta = tl.load(DELTA + query, mask=query < queries, other=0.0)
            grad_weights = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
            grad_scores = weights * (grad_weights - delta[None, :]) * bend_slope
            dk = tl.dot(grad_scores.to(q.dtype), q, dk, input_precision=PRECISION, out_dtype=dk.dtype)
    return dk, dv


@triton.jit
def key_grads_kernel(
    Q: tl.tensor, K: tl.tensor, V: tl.tensor, GRAD: tl.tensor, LSE: tl.tensor, DELTA: tl.tensor,
    DK: tl.tensor, DV: tl.tensor, SLOPES: tl.tensor, QUERY_BORDERS: tl.tensor, KEY_BORDERS: tl.tensor,
    q_strides: tl.tuple, k_strides: tl.tuple, v_strides: tl.tuple, grad_strides: tl.tuple,
    dk_strides: tl.tuple, dv_strides: tl.tuple, heads: int, group: int, rows: int, columns: int,
    factor: float, scale: float, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, WANT_DK: tl.constexpr, WANT_DV: tl.constexpr,
) -> None:  # fmt: skip
    """Write dK and dV of one tile of keys of one key/value head, summed over its query heads in order.

    Wide heads launch this twice, with WANT_DK and with WANT_DV: two accumulators do not fit in registers.
    """
    key_heads = heads // group
    z = tl.program_id(1) // key_heads
    key_head = tl.program_id(1) % key_heads
    batch, query_row, queries, key_row, keys = document(QUERY_BORDERS, KEY_BORDERS, z, rows, columns)
    first = tl.program_id(0) * BLOCK_K
    if first >= keys:
        return
    shift = keys - queries
    key = first + tl.arange(0, BLOCK_K)
    k_base = row_base(K, k_strides, batch, key_row + first, key_head)
    v_base = row_base(V, v_strides, batch, key_row + first, key_head)
    k = load_tile(k_base, k_strides[1], keys - first, D, BLOCK_K, WIDTH, True)
    v = load_tile(v_base, v_strides[1], keys - first, D, BLOCK_K, WIDTH, True)
    dk = tl.zeros([BLOCK_K, WIDTH], ACC)
    dv = tl.zeros([BLOCK_K, WIDTH], ACC)
    begin, end = query_range(first, queries, shift, BLOCK_K, CAUSAL, WINDOW)
    seeing_all = begin
    if CAUSAL and WINDOW == 0:
        blocks = tl.cdiv(tl.maximum(first + BLOCK_K - 1 - shift - begin, 0), BLOCK_Q)
        seeing_all = tl.minimum(begin + blocks * BLOCK_Q, tl.maximum(end, begin))
    if WINDOW > 0:
        seeing_all = tl.maximum(end, begin)
    for member in tl.range(0, group):
        head = key_head * group + member
        slope = None
        if SLOPES is not None:
            slope = tl.load(SLOPES + head)
        q_base = row_base(Q, q_strides, batch, query_row, head)
        grad_base = row_base(GRAD, grad_strides, batch, query_row, head)
        line = (batch.to(tl.int64) * heads + head) * rows + query_row
        dk, dv = key_grads_of_range(
            dk, dv, k, v, q_base, grad_base, LSE + line, DELTA + line, q_strides[1], grad_strides[1], begin,
            seeing_all, key, queries, keys, factor, slope, D, WIDTH, BLOCK_Q, CAUSAL, WINDOW, SOFTCAP,
            PRECISION, True, WANT_DK, WANT_DV,
        )  # fmt: skip
        if WINDOW == 0:
            dk, dv = key_grads_of_range(
                dk, dv, k, v, q_base, grad_base, LSE + line, DELTA + line, q_strides[1], grad_strides[1],
                seeing_all, end, key, queries, keys, factor, slope, D, WIDTH, BLOCK_Q, CAUSAL, WINDOW,
                SOFTCAP, PRECISION, False, WANT_DK, WANT_DV,
            )  # fmt: skip
    if WANT_DK:
        dk_base = row_base(DK, dk_strides, batch, key_row + first, key_head)
        store_tile(dk_base, dk_strides[1], dk * scale, keys - first, D, BLOCK_K, WIDTH)
    if WANT_DV:
        dv_base = row_base(DV, dv_strides, batch, key_row + first, key_head)
        store_tile(dv_base, dv_strides[1], dv, keys - first, D, BLOCK_K, WIDTH)


@triton.jit
def query_grads_of_range(
    dq: tl.tensor, q: tl.tensor, grad: tl.tensor, lse: tl.tensor, delta: tl.tensor, K: tl.tensor,
    V: tl.tensor, k_stride: tl.tensor, v_stride: tl.tensor, K_TILES: tl.tensor, V_TILES: tl.tensor,
    batch: tl.tensor, key_row: tl.tensor, key_head: tl.tensor, begin: tl.tensor, end: tl.tensor,
    place: tl.tensor, keys: tl.tensor, factor: tl.tensor, slope: tl.tensor, D: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Add what the keys [begin, end) give to dQ, without the scale."""
    STREAM: tl.constexpr = K_TILES is not None and not MASKED
    for start in tl.range(begin, end, BLOCK_K):
        key = start + tl.arange(0, BLOCK_K)
        distance = place[:, None] - key[None, :]
        if STREAM:
            k = stream_tile(K_TILES, batch, key_row + start, key_head, BLOCK_K, WIDTH)
            v = stream_tile(V_TILES, batch, key_row + start, key_head, BLOCK_K, WIDTH)
        else:
            k = load_tile(
                K + tl.cast(start, tl.int64) * k_stride, k_stride, keys - start, D, BLOCK_K, WIDTH, MASKED
            )
            v = load_tile(
                V + tl.cast(start, tl.int64) * v_stride, v_stride, keys - start, D, BLOCK_K, WIDTH, MASKED
            )
        product = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores, bend_slope = bend(product, factor, distance, slope, SOFTCAP)
        weights = tl.exp2(scores - lse[:, None])
        if MASKED:
            weights = tl.where(visible(distance, key[None, :], keys, CAUSAL, WINDOW), weights, 0.0)
        grad_weights = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        grad_scores = weights * (grad_weights - delta[:, None]) * bend_slope
        dq = tl.dot(grad_scores.to(k.dtype), k, dq, input_precision=PRECISION, out_dtype=dq.dtype)
    return dq


@triton.jit
def query_grads_kernel(
    Q: tl.tensor, K: tl.tensor, V: tl.tensor, GRAD: tl.tensor, LSE: tl.tensor, DELTA: tl.tensor,
    DQ: tl.tensor, SLOPES: tl.tensor, QUERY_BORDERS: tl.tensor, KEY_BORDERS: tl.tensor, K_TILES: tl.tensor,
    V_TILES: tl.tensor, q_strides: tl.tuple, k_strides: tl.tuple, v_strides: tl.tuple, grad_strides: tl.tuple,
    dq_strides: tl.tuple, heads: int, group: int, rows: int, columns: int, factor: float, scale: float,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
) -> None:  # fmt: skip
    """Write dQ of one tile of queries."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    z = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    batch, query_row, queries, key_row, keys = document(QUERY_BORDERS, KEY_BORDERS, z, rows, columns)
    first = tile * BLOCK_Q
    if first >= queries:
        return
    shift = keys - queries
    query = first + tl.arange(0, BLOCK_Q)
    left = queries - first
    q_base = row_base(Q, q_strides, batch, query_row + first, head)
    grad_base = row_base(GRAD, grad_strides, batch, query_row + first, head)
    q = load_tile(q_base, q_strides[1], left, D, BLOCK_Q, WIDTH, True)
    grad = load_tile(grad_base, grad_strides[1], left, D, BLOCK_Q, WIDTH, True)
    line = (batch.to(tl.int64) * heads + head) * rows + query_row
    lse = tl.load(LSE + line + query, mask=query < queries, other=float("inf")) * LOG2E
    delta = tl.load(DELTA + line + query, mask=query < queries, other=0.0)
    key_head = head // group
    k_base = row_base(K, k_strides, batch, key_row, key_head)
    v_base = row_base(V, v_strides, batch, key_row, key_head)
    slope = None
    if SLOPES is not None:
        slope = tl.load(SLOPES + head)
    dq = tl.zeros([BLOCK_Q, WIDTH], ACC)
    begin, end = key_range(first, keys, shift, BLOCK_Q, CAUSAL, WINDOW)
    if WINDOW == 0:
        seen_by_all = keys
        if CAUSAL:
            seen_by_all = tl.minimum(keys, first + shift + 1)
        whole = tl.maximum(seen_by_all, 0) // BLOCK_K * BLOCK_K
        dq = query_grads_of_range(
            dq, q, grad, lse, delta, k_base, v_base, k_strides[1], v_strides[1], K_TILES, V_TILES, batch,
            key_row, key_head, begin, whole, query + shift, keys, factor, slope, D, WIDTH, BLOCK_K, CAUSAL,
            WINDOW, SOFTCAP, PRECISION, False,
        )  # fmt: skip
        begin = whole
    dq = query_grads_of_range(
        dq, q, grad, lse, delta, k_base, v_base, k_strides[1], v_strides[1], K_TILES, V_TILES, batch, key_row,
        key_head, begin, end, query + shift, keys, factor, slope, D, WIDTH, BLOCK_K, CAUSAL, WINDOW, SOFTCAP,
        PRECISION, True,
    )  # fmt: skip
    dq_base = row_base(DQ, dq_strides, batch, query_row + first, head)
    store_tile(dq_base, dq_strides[1], dq * scale, left, D, BLOCK_Q, WIDTH)
