"""A plan of one experiment: memory, time, money and failures of one layout on one machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distllm.config.schema import Config
from distllm.plan.conventions import CONVENTIONS
from distllm.plan.exchanges import sent_bytes
from distllm.plan.fitted import FITTED
from distllm.plan.goodput import Goodput, expected_goodput
from distllm.plan.layout import Layout, Software
from distllm.plan.machine import Efficiency, Machine
from distllm.plan.memory import Memory, peak_memory
from distllm.plan.speed import StepTime, step_time
from distllm.plan.work import Work

CONVENTION = "causal"
# DeepSpeed's buffers of exchanges, in buckets, by stage: measured with two sizes of bucket.
_BUCKETS = {0: 1.0, 1: 2.5, 2: 2.5, 3: 4.0}
# glibc's heap, which keeps what it once had, over what a CPU rank's activations need: measured.
_CPU_FRAGMENTATION = 0.25
_CHUNK_TOKENS = 512
# Of log-probabilities of answers: one more copy in backward, and gradients of two operations (measured).
_COMPARED_LOGIT_BYTES = 12
_MAX_LIVE_PARAMS = 10**9
# Arrays of the width of queries or keys that torch's seven kernels of a rotation move; one kernel moves two.
_TORCH_ROTATION_PASSES = 9
# Arrays of weights that a pass over gradients moves on a CPU: whole ones are added, partitioned ones copied
# into a bucket. More is in the speeds that are measured there.
_CPU_ADDS = (3, 2)
# Of a weight of DeepSpeed's partition: its gradient is flattened (8), normed (4) and clipped (8), the fused
# update moves 28, and the new weight is converted (6).
_PARTITION_UPDATE_BYTES = 54
# A checkpoint holds weights and both moments in fp32.
CHECKPOINT_BYTES = 12


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one layout would be like.

    Attributes:
        layout: how it is spread.
        memory: of the fullest rank.
        limit_bytes: what a device has for it.
        host_limit_bytes: a device's share of host memory; None where it is not known.
        time: of one step.
        sent: bytes that a rank sends in one step, by what they are.
        mfu: share of the peak, in the convention `CONVENTION`.
        tokens_per_second: over all ranks.
    """

    layout: Layout
    memory: Memory
    limit_bytes: float
    host_limit_bytes: float | None
    time: StepTime
    sent: Mapping[str, float]
    mfu: float
    tokens_per_second: float

    @property
    def fits(self) -> bool:
        """Whether the fullest rank has the memory, of its device and of the host."""
        return self.memory.device <= self.limit_bytes and self.fits_host

    @property
    def fits_host(self) -> bool:
        """Whether what is offloaded has room in a rank's share of host memory."""
        return self.host_limit_bytes is None or self.memory.host <= self.host_limit_bytes

    @property
    def limited_by(self) -> str:
        """Why it is not faster, or why it cannot run."""
        if not self.fits_host:
            return "host memory"
        if not self.fits:
            parts = self.memory.parts()
            return f"memory, most of it {max(parts, key=lambda name: parts[name])}"
        return self.time.limit


@dataclass(frozen=True, slots=True)
class Bill:
    """A whole run.

    Attributes:
        steps: of the optimizer.
        busy_seconds: without failures and checkpoints.
        wall_seconds: with them.
        gpu_hours: devices times wall time.
        price: in the user's currency; None where a device's price is not known.
        energy_kwh: None where a device's power is not known.
        goodput: what failures and checkpoints leave.
    """

    steps: int
    busy_seconds: float
    wall_seconds: float
    gpu_hours: float
    price: float | None
    energy_kwh: float | None
    goodput: Goodput


def software_of(config: Config, layout: Layout, *, base_bytes: float = 0.0) -> Software:
    """Return how distllm holds and exchanges what ``config`` trains."""
    compute, stage, on_gpu = config.precision.compute, layout.zero_stage, config.cluster.device == "cuda"
    element = 4 if compute == "fp32" else 2
    own_masters = compute == "bf16" or stage > 0
    wide = compute == "bf16" and stage >= 2
    gated, compares = config.model.gated, config.task.name == "dpo"
    buckets = 0.0 if config.engine.name == "local" else _BUCKETS[stage]
    # a contrastive step embeds all its pairs before the first backward pass
    passes = 2 if config.task.name == "contrastive" else 1
    # where a CPU is measured, its rotation counts as two passes, as here
    fused = on_gpu and config.engine.kernels == "triton"
    rotation = _TORCH_ROTATION_PASSES if on_gpu and not fused else 2
    between = _between_passes(layout, 1 + passes) if on_gpu else (_CPU_ADDS[stage >= 2], 0)
    return Software(
        weight_bytes=element,
        grad_bytes=element,
        accumulated_bytes=4 if wide else 0,
        flattened_bytes=4 if stage > 0 else 0,
        reduced_bytes=element,
        optimizer_bytes=(12 if own_masters else 8) + (0 if config.optim.ema is None else 4),
        element_bytes=element,
        mlp_saved=4 if gated else 2,
        norm_saved=2 if on_gpu else 3,  # torch fuses norms only on a GPU
        rotation_passes=rotation if config.model.positions == "rope" else 0,
        fused=fused,
        bias_sums=config.model.mlp_bias,
        fragmentation=0.0 if on_gpu else _CPU_FRAGMENTATION,
        logits_tokens=0 if compares else _CHUNK_TOKENS,
        logits_bytes=element
        + (_COMPARED_LOGIT_BYTES if compares else 4)
        + (element if compute == "bf16" else 0),
        reference_bytes=element if compares else 0,
        forward_passes=passes,
        gathers=1 + passes,
        compiled=config.engine.compile,
        adding_bytes=between[0] * element if layout.accumulation > 1 or stage >= 2 else 0,
        clipping_bytes=between[1] * element,
        update_bytes=_PARTITION_UPDATE_BYTES if on_gpu and stage > 0 else Software().update_bytes,
        sums_whole=config.engine.name != "local",  # DeepSpeed's use_multi_rank_bucket_allreduce
        bucket_params=0 if config.engine.name == "local" else config.engine.bucket_bytes // element,
        live_params=_MAX_LIVE_PARAMS,
        # DeepSpeed copies gathered weights out of a buffer, which glibc's heap does not use again at once
        gather_copies=0 if on_gpu else 1,
        bucket_bytes=int(buckets * config.engine.bucket_bytes) if layout.replicas > 1 or stage else 0,
        base_bytes=base_bytes,
    )


def _between_passes(layout: Layout, gathers: int) -> tuple[int, int]:
    """Return arrays of all weights that DeepSpeed moves after each micro-batch, and once a step, on a GPU.

    To sum gradients it copies them into a bucket and divides them, and below stage 3 flattens the bucket once
    more (stage_1_and_2.py, stage3.py); gathered weights are put together by ``torch.cat``.
    """
    added, summed = 3, 6
    if layout.zero_stage == 3:
        return 4 + 2 * gathers, 0
    if layout.zero_stage == 2:
        return summed, 0
    return added, summed * layout.zero_stage


def estimate(
    work: Work,
    layout: Layout,
    config: Config,
    machine: Machine,
    *,
    reserve: float = 0.0,
    base_bytes: float = 0.0,
    efficiency: Efficiency = FITTED,
) -> Estimate:
    """Return memory and speed of ``layout``."""
    software = software_of(config, layout, base_bytes=base_bytes)
    time = step_time(work, layout, software, machine, efficiency)
    tokens_per_second = layout.tokens_per_step / time.total
    flops = CONVENTIONS[CONVENTION](work, layout.seq_len)
    return Estimate(
        layout=layout,
        memory=peak_memory(work, layout, software),
        limit_bytes=machine.memory_bytes * (1 - reserve),
        host_limit_bytes=machine.host_memory_bytes,
        time=time,
        sent=sent_bytes(work, layout, software, machine),
        mfu=tokens_per_second * flops / (layout.ranks * machine.peak_flops),
        tokens_per_second=tokens_per_second,
    )


def bill(config: Config, work: Work, chosen: Estimate, total_tokens: int) -> Bill:
    """Return what a run of ``total_tokens`` costs with ``chosen``."""
    hardware, layout = config.cluster.hardware, chosen.layout
    steps = -(-total_tokens // layout.tokens_per_step)
    busy = steps * chosen.time.total
    save = work.params * work.trainable_share * CHECKPOINT_BYTES / (hardware.store_gb_per_s * 1e9)
    goodput = expected_goodput(
        nodes=-(-layout.ranks // hardware.devices_per_node),
        node_mttf_seconds=hardware.node_mttf_hours * 3600,
        save_seconds=save,
        restart_seconds=hardware.restart_seconds,
        busy_seconds=busy,
    )
    wall = busy / goodput.fraction
    hours = layout.ranks * wall / 3600
    return Bill(
        steps=steps,
        busy_seconds=busy,
        wall_seconds=wall,
        gpu_hours=hours,
        price=hours * hardware.price_per_hour if hardware.price_per_hour is not None else None,
        energy_kwh=hours * hardware.power_watts / 1000 if hardware.power_watts is not None else None,
        goodput=goodput,
    )
