"""The forward kernel: one tile of queries against all keys it sees, by online softmax.

The algorithm is that of FlashAttention-2 (Dao 2023): the keys pass by in tiles, with a running
maximum, a running denominator and an output that is rescaled whenever the maximum moves.
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
    row_base,
    store_tile,
    stream_tile,
    visible,
)


@triton.jit
def attend_range(
    out: tl.tensor, peak: tl.tensor, total: tl.tensor, q: tl.tensor, K: tl.tensor, V: tl.tensor,
    k_stride: tl.tensor, v_stride: tl.tensor, K_TILES: tl.tensor, V_TILES: tl.tensor, batch: tl.tensor,
    key_row: tl.tensor, key_head: tl.tensor, begin: tl.tensor, end: tl.tensor, place: tl.tensor,
    keys: tl.tensor, factor: tl.tensor, slope: tl.tensor, D: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr, MASKED: tl.constexpr,
) -> tl.tuple:  # fmt: skip
    """Fold the keys [begin, end) into (out, peak, total); without MASKED, every query sees all of them.

    ``place`` holds the queries' key positions. A row that has seen no key has the peak -inf. Tiles that are
    seen whole come by K_TILES and V_TILES where there are such.
    """
    STREAM: tl.constexpr = K_TILES is not None and not MASKED
    for start in tl.range(begin, end, BLOCK_K):
        if STREAM:
            k = stream_tile(K_TILES, batch, key_row + start, key_head, BLOCK_K, WIDTH)
        else:
            k = load_tile(
                K + tl.cast(start, tl.int64) * k_stride, k_stride, keys - start, D, BLOCK_K, WIDTH, MASKED
            )
        key = start + tl.arange(0, BLOCK_K)
        distance = place[:, None] - key[None, :]
        scores, _ = bend(tl.dot(q, tl.trans(k), input_precision=PRECISION), factor, distance, slope, SOFTCAP)
        if MASKED:
            scores = tl.where(visible(distance, key[None, :], keys, CAUSAL, WINDOW), scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        base = new_peak
        if MASKED:  # -inf - -inf is not a number
            base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(weights, 1)
        if STREAM:
            v = stream_tile(V_TILES, batch, key_row + start, key_head, BLOCK_K, WIDTH)
        else:
            v = load_tile(
                V + tl.cast(start, tl.int64) * v_stride, v_stride, keys - start, D, BLOCK_K, WIDTH, MASKED
            )
        out = out * shrink[:, None]
        out = tl.dot(weights.to(v.dtype), v, out, input_precision=PRECISION, out_dtype=out.dtype)
        peak = new_peak
    return out, peak, total


@triton.jit
def forward_kernel(
    Q: tl.tensor, K: tl.tensor, V: tl.tensor, OUT: tl.tensor, LSE: tl.tensor, SINKS: tl.tensor,
    SLOPES: tl.tensor, QUERY_BORDERS: tl.tensor, KEY_BORDERS: tl.tensor, K_TILES: tl.tensor,
    V_TILES: tl.tensor, q_strides: tl.tuple, k_strides: tl.tuple, v_strides: tl.tuple, out_strides: tl.tuple,
    heads: int, group: int, rows: int, columns: int, factor: float, D: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
) -> None:  # fmt: skip
    """Write OUT and LSE (natural logarithm) of one tile of queries.

    ``rows`` and ``columns`` are the lengths of the time axes of Q and K. A sink is one more logit of
    every softmax, without a value (gpt-oss): it starts the running maximum and denominator.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # causal: the longest tiles start first
    z = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    batch, query_row, queries, key_row, keys = document(QUERY_BORDERS, KEY_BORDERS, z, rows, columns)
    first = tile * BLOCK_Q
    if first >= queries:
        return
    shift = keys - queries
    query = first + tl.arange(0, BLOCK_Q)
    q_base = row_base(Q, q_strides, batch, query_row + first, head)
    q = load_tile(q_base, q_strides[1], queries - first, D, BLOCK_Q, WIDTH, True)
    key_head = head // group
    k_base = row_base(K, k_strides, batch, key_row, key_head)
    v_base = row_base(V, v_strides, batch, key_row, key_head)
    slope = None
    if SLOPES is not None:
        slope = tl.load(SLOPES + head)
    peak = tl.full([BLOCK_Q], float("-inf"), ACC)
    total = tl.zeros([BLOCK_Q], ACC)
    if SINKS is not None:
        peak = tl.zeros([BLOCK_Q], ACC) + tl.load(SINKS + head) * LOG2E
        total += 1.0
    out = tl.zeros([BLOCK_Q, WIDTH], ACC)
    begin, end = key_range(first, keys, shift, BLOCK_Q, CAUSAL, WINDOW)
    if WINDOW == 0:
        seen_by_all = keys
        if CAUSAL:
            seen_by_all = tl.minimum(keys, first + shift + 1)
        whole = tl.maximum(seen_by_all, 0) // BLOCK_K * BLOCK_K
        out, peak, total = attend_range(
            out, peak, total, q, k_base, v_base, k_strides[1], v_strides[1], K_TILES, V_TILES, batch, key_row,
            key_head, begin, whole, query + shift, keys, factor, slope, D, WIDTH, BLOCK_K, CAUSAL, WINDOW,
            SOFTCAP, PRECISION, False,
        )  # fmt: skip
        begin = whole
    out, peak, total = attend_range(
        out, peak, total, q, k_base, v_base, k_strides[1], v_strides[1], K_TILES, V_TILES, batch, key_row,
        key_head, begin, end, query + shift, keys, factor, slope, D, WIDTH, BLOCK_K, CAUSAL, WINDOW, SOFTCAP,
        PRECISION, True,
    )  # fmt: skip
    out = out / tl.where(total == 0.0, 1.0, total)[:, None]
    lse = (peak + tl.log2(tl.where(total == 0.0, 1.0, total))) / LOG2E
    lse_base = LSE + (batch.to(tl.int64) * heads + head) * rows + query_row
    tl.store(lse_base + query, lse, mask=query < queries)
    out_base = row_base(OUT, out_strides, batch, query_row + first, head)
    store_tile(out_base, out_strides[1], out, queries - first, D, BLOCK_Q, WIDTH)
