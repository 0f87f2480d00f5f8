"""How distllm itself holds, moves and exchanges what an experiment trains."""

from __future__ import annotations

from distllm.config.schema import Config
from distllm.plan.layout import Layout, Software

# What a CPU rank holds before it has a model, pages of files excepted: the interpreter with torch, then
# DeepSpeed, then what its partitioning stages import (measured with a model of 40 000 weights).
_PROCESS_BYTES, _DEEPSPEED_BYTES, _PARTITIONING_BYTES = 264e6, 114e6, 51e6
# DeepSpeed's buffers of exchanges, in buckets, by stage: measured with two sizes of bucket.
_BUCKETS = {0: 0.0, 1: 2.5, 2: 2.5, 3: 4.0}
# Of glibc's heap: arrays fill the holes between others only in part (measured on thirteen kinds of run).
_CPU_HEAP_LOSS = 0.15
# Gradients that DeepSpeed without partitioning flattens for one sum (its MEMORY_OPT_ALLREDUCE_SIZE).
_FLATTENED_SUMS = 500_000_000
_CHUNK_TOKENS = 512
# Of log-probabilities of answers: one more copy in backward, and gradients of two operations (measured).
_COMPARED_LOGIT_BYTES = 12
_MAX_LIVE_PARAMS = 10**9
# Arrays as wide as queries or keys that torch's seven kernels of a rotation move; one kernel moves two.
_TORCH_ROTATION_PASSES = 9
# Arrays of weights that a pass over gradients moves on a CPU: whole gradients are added, partitioned ones
# copied into a bucket. Whatever else moves there is part of the speeds that are measured.
_CPU_ADDED, _CPU_BUCKETED = 3, 2
# Of a weight of DeepSpeed's partition: its gradient is flattened (8), normed (4) and clipped (8), the fused
# update moves 28, and the new weight is converted (6).
_PARTITION_UPDATE_BYTES = 54


def software_of(config: Config, layout: Layout) -> Software:
    """Return how distllm holds and exchanges what ``config`` trains."""
    compute, stage, on_gpu = config.precision.compute, layout.zero_stage, config.cluster.device == "cuda"
    deepspeed = config.engine.name != "local"
    element = 4 if compute == "fp32" else 2
    own_masters = compute == "bf16" or stage > 0
    gated, compares = config.model.gated, config.task.name == "dpo"
    # a contrastive step embeds all its pairs before the first backward pass
    passes = 2 if config.task.name == "contrastive" else 1
    fused = on_gpu and config.engine.kernels == "triton"
    between, after = _gradient_passes(layout, 1 + passes, on_gpu)
    flattens = deepspeed and stage == 0 and layout.replicas > 1
    return Software(
        weight_bytes=element,
        grad_bytes=element,
        accumulated_bytes=4 if compute == "bf16" and stage >= 2 else 0,
        flattened_bytes=4 if stage > 0 else 0,
        reduced_bytes=element,
        optimizer_bytes=(12 if own_masters else 8) + (0 if config.optim.ema is None else 4),
        element_bytes=element,
        mlp_saved=4 if gated else 2,
        norm_saved=2 if on_gpu else 3,  # torch fuses norms only on a GPU
        rotation_passes=_rotation_passes(config, on_gpu and not fused),
        fused=fused,
        bias_sums=config.model.mlp_bias,
        heap_loss=0.0 if on_gpu else _CPU_HEAP_LOSS,
        logits_tokens=0 if compares else _CHUNK_TOKENS,
        logits_bytes=_logit_bytes(compute, compares),
        reference_bytes=element if compares else 0,
        forward_passes=passes,
        gathers=1 + passes,
        compiled=config.engine.compile,
        adding_bytes=between * element if layout.accumulation > 1 or stage >= 2 else 0,
        clipping_bytes=after * element,
        update_bytes=_PARTITION_UPDATE_BYTES if on_gpu and stage > 0 else Software().update_bytes,
        sums_whole=deepspeed,  # DeepSpeed's use_multi_rank_bucket_allreduce
        bucket_params=config.engine.bucket_bytes // element if deepspeed else 0,
        live_params=_MAX_LIVE_PARAMS,
        # DeepSpeed copies gathered weights out of a buffer, which glibc's heap does not use again at once
        gather_copies=0 if on_gpu else 1,
        flattened_sums=_FLATTENED_SUMS if flattens else 0,
        bucket_bytes=int(_BUCKETS[stage] * config.engine.bucket_bytes) if deepspeed else 0,
        base_bytes=0.0 if on_gpu else _process_bytes(deepspeed, stage),
    )


def _process_bytes(deepspeed: bool, stage: int) -> float:
    """Return what a CPU rank holds before it has a model; on a GPU the profile's reserve covers it."""
    return _PROCESS_BYTES + deepspeed * _DEEPSPEED_BYTES + (stage > 0) * _PARTITIONING_BYTES


def _rotation_passes(config: Config, many_kernels: bool) -> float:
    """Return the arrays that rotating queries or keys moves; the speeds of a CPU are measured with two."""
    if config.model.positions != "rope":
        return 0
    return _TORCH_ROTATION_PASSES if many_kernels else 2


def _logit_bytes(compute: str, compares: bool) -> int:
    """Return the bytes of one logit over all its copies: as computed, in fp32, and their gradients."""
    element = 4 if compute == "fp32" else 2
    return element + (_COMPARED_LOGIT_BYTES if compares else 4) + (element if compute == "bf16" else 0)


def _gradient_passes(layout: Layout, gathers: int, on_gpu: bool) -> tuple[int, int]:
    """Return arrays of all weights that are moved after each micro-batch, and once a step.

    To sum gradients DeepSpeed copies them into a bucket and divides them, and below stage 3 flattens the
    bucket once more or copies it back (engine.py, stage_1_and_2.py, stage3.py); gathered weights are put
    together by ``torch.cat``.
    """
    if not on_gpu:
        return (_CPU_BUCKETED if layout.zero_stage >= 2 else _CPU_ADDED), 0
    added, summed = 3, 6
    if layout.zero_stage == 3:
        return 4 + 2 * gathers, 0
    if layout.zero_stage == 2:
        return summed, 0
    return added, summed if layout.replicas > 1 or layout.zero_stage else 0
