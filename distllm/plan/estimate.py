"""A plan of one experiment: memory, time, money and failures of one layout on one machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distllm.config.schema import Config
from distllm.plan.conventions import CONVENTIONS
from distllm.plan.exchanges import sent_bytes
from distllm.plan.fitted import FITTED
from distllm.plan.goodput import Goodput, expected_goodput
from distllm.plan.layout import Layout
from distllm.plan.machine import Efficiency, Machine
from distllm.plan.memory import Memory, peak_memory
from distllm.plan.software import software_of
from distllm.plan.speed import StepTime, step_time
from distllm.plan.work import Work

CONVENTION = "causal"
# A checkpoint holds weights and both moments in fp32.
CHECKPOINT_BYTES = 12


@dataclass(frozen=True, slots=True)
class Estimate:
    """Memory and speed of one layout.

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


def estimate(
    work: Work,
    layout: Layout,
    config: Config,
    machine: Machine,
    *,
    reserve: float = 0.0,
    efficiency: Efficiency = FITTED,
) -> Estimate:
    """Return memory and speed of ``layout``."""
    software = software_of(config, layout)
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
