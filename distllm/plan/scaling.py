"""One model with the same batch on each device, on more and more devices."""

from __future__ import annotations

from dataclasses import dataclass, replace

from distllm.config.resolve import Resolved
from distllm.config.schema import Config
from distllm.plan.estimate import bill, estimate
from distllm.plan.experiment import layout_of
from distllm.plan.fitted import FITTED
from distllm.plan.machine import Machine
from distllm.plan.work import Work, work_of

LARGEST = 16_384


@dataclass(frozen=True, slots=True)
class Scale:
    """One size of a cluster.

    Attributes:
        ranks: devices.
        step_seconds: of one step.
        exposed: share of it in exchanges that nothing hides.
        mfu: share of the peak.
        mttf_hours: of the whole job.
        interval_minutes: between checkpoints.
        goodput: share of the time that counts.
    """

    ranks: int
    step_seconds: float
    exposed: float
    mfu: float
    mttf_hours: float
    interval_minutes: float
    goodput: float


def scale_out(config: Config, work: Work, resolved: Resolved, machine: Machine) -> list[Scale]:
    """Return the sizes from one node to `LARGEST` devices, doubling; a rank's batch stays what it is."""
    found, ranks = [], machine.per_node
    while ranks <= LARGEST:
        layout = replace(layout_of(resolved), ranks=ranks)
        one = estimate(work, layout, config, machine, efficiency=FITTED)
        # a month of work, so that failures have their share
        cost = bill(config, work, one, int(one.tokens_per_second * 30 * 86400))
        found.append(
            Scale(
                ranks=ranks,
                step_seconds=one.time.total,
                exposed=one.time.exposed / one.time.total,
                mfu=one.mfu,
                mttf_hours=cost.goodput.mttf_seconds / 3600,
                interval_minutes=cost.goodput.interval_seconds / 60,
                goodput=cost.goodput.fraction,
            )
        )
        ranks *= 2
    return found


def scaling_table(resolved: Resolved, machine: Machine) -> str:
    """Return `scale_out` as text."""
    work = work_of(resolved.shape, resolved.trainable_params)
    lines = ["devices   step s  exposed    MFU   MTTF h  interval min  goodput"]
    lines += [
        f"{one.ranks:>7} {one.step_seconds:>8.3f} {one.exposed:>8.1%} {one.mfu:>6.1%} "
        f"{one.mttf_hours:>8.2f} {one.interval_minutes:>13.1f} {one.goodput:>8.1%}"
        for one in scale_out(resolved.config, work, resolved, machine)
    ]
    return "\n".join(lines)
