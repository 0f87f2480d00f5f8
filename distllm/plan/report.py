"""A plan: the run as configured, the fastest layouts found, and both in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from distllm.config.resolve import Resolved
from distllm.plan.admission import overrides
from distllm.plan.conventions import CONVENTIONS
from distllm.plan.estimate import CONVENTION, Bill, Estimate, bill, estimate
from distllm.plan.experiment import layout_of, space_of
from distllm.plan.layout import Layout
from distllm.plan.machine import Efficiency, Machine
from distllm.plan.search import Found, layouts, search
from distllm.plan.work import work_of
from distllm.units import format_bytes, format_count, format_duration

_SHOWN = 5
_NOT_OFFERED = (
    "not tried, because distllm does not offer it:",
    "  quantised exchanges (ZeRO++): DeepSpeed's quantiser has no CPU version to hold its losses to",
    "  hierarchical partitioning (MiCS): DeepSpeed 0.19 removed it; engine.hpz_ranks is what remains",
    "  tensor and pipeline parallelism",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known before a run is queued.

    Attributes:
        machine: name of the device.
        params: of the model.
        flops_per_token: forward and backward, in ``convention``.
        convention: how they are counted.
        other_mfu: the utilisation of the run as others count it, by convention.
        asked: the run as it is configured.
        cost: of the whole of it.
        found: the fastest layouts of the same step.
    """

    machine: str
    params: int
    flops_per_token: float
    convention: str
    other_mfu: dict[str, float]
    asked: Estimate
    cost: Bill
    found: Found


def make_plan(resolved: Resolved, machine: Machine, efficiency: Efficiency) -> Plan:
    """Plan ``resolved`` on ``machine`` and look for better layouts of the same step."""
    config, work = resolved.config, work_of(resolved.shape, resolved.trainable_params)
    reserve = config.cluster.hardware.reserve if config.cluster.device == "cuda" else 0.0

    def judge(layout: Layout) -> Estimate:
        return estimate(
            work,
            layout,
            config,
            machine,
            reserve=reserve,
            efficiency=efficiency,
        )

    asked = judge(layout_of(resolved))
    tokens, ranks = config.train.tokens_per_step, resolved.world.size
    flops = CONVENTIONS[CONVENTION](work, config.data.seq_len)
    found = search(layouts(work, ranks, config.data.seq_len, tokens, space_of(config)), judge)
    return Plan(
        machine=machine.name,
        params=work.params,
        flops_per_token=flops,
        convention=CONVENTION,
        other_mfu={
            name: asked.mfu * count(work, config.data.seq_len) / flops
            for name, count in CONVENTIONS.items()
            if name != CONVENTION
        },
        asked=asked,
        cost=bill(config, work, asked, resolved.total_tokens),
        found=found,
    )


def describe(plan: Plan, resolved: Resolved) -> str:
    """Return the plan as text."""
    asked, layout = plan.asked, plan.asked.layout
    lines = [
        f"{format_count(plan.params)} parameters, {format_count(plan.flops_per_token)} FLOPs per token "
        f"({plan.convention} convention), {layout.ranks} x {plan.machine}",
        f"as configured: {_words(layout)}",
        *_format_hint(resolved),
        "",
        "memory of the fullest rank",
        *_table(asked.memory.parts().items(), format_bytes),
        f"  {'in all':<16}{format_bytes(asked.memory.device):>12}   of {format_bytes(asked.limit_bytes)}: "
        + ("fits" if asked.memory.device <= asked.limit_bytes else "does NOT fit"),
    ]
    if asked.memory.host:
        room = asked.host_limit_bytes
        verdict = "fits" if asked.fits_host else "does NOT fit"
        of = "" if room is None else f"   of {format_bytes(room)}: {verdict}"
        lines.append(f"  {'host memory':<16}{format_bytes(asked.memory.host):>12}{of}")
    if asked.memory.disk:
        lines.append(f"  {'files':<16}{format_bytes(asked.memory.disk):>12}")
    lines += ["", "seconds of a step", *_times(asked)]
    if sum(asked.sent.values()):
        lines += ["", "bytes that a rank sends in a step", *_table(asked.sent.items(), format_bytes)]
    lines += ["", *_totals(plan), "", *_search(plan, resolved)]
    return "\n".join(lines)


def _format_hint(resolved: Resolved) -> list[str]:
    device, compute = resolved.config.cluster.device, resolved.config.precision.compute
    if device == "cuda" and compute == "fp32":
        return ["in fp32, without tensor cores: precision=bf16 is many times faster on this device"]
    if device == "cpu" and compute == "bf16":
        return ["speeds are those of fp32, in which CPUs are measured: bf16 is several times slower on them"]
    return []


def _table(rows: Iterable[tuple[str, float]], show: Callable[[float], str]) -> list[str]:
    return [f"  {name:<16}{show(value):>12}" for name, value in rows if value]


def _times(asked: Estimate) -> list[str]:
    time = asked.time
    parts = {
        "products": time.gemm,
        "attention": time.attention,
        "element-wise": time.elementwise,
        "head and loss": time.head,
        "reference": time.reference,
        "recomputation": time.recompute,
        "sequence": time.sequence_exchange,
        "experts": time.expert_exchange,
        "exchanges": time.exposed,
        "slowed by them": time.slowed,
        "launches": time.launching,
        "update": time.update,
    }
    shown = _table(parts.items(), lambda seconds: f"{seconds:.4f}")
    return [*shown, f"  {'in all':<16}{time.total:>12.4f}   exchanges hidden behind work: {time.hidden:.4f}"]


def _totals(plan: Plan) -> list[str]:
    asked, cost, goodput = plan.asked, plan.cost, plan.cost.goodput
    lines = [
        f"speed      {format_count(asked.tokens_per_second)} tokens/s, "
        f"{format_count(asked.tokens_per_second / asked.layout.ranks)} per rank, MFU {asked.mfu:.1%}",
        "           in others' conventions "
        + ", ".join(f"{name} {share:.1%}" for name, share in plan.other_mfu.items()),
        f"run        {cost.steps} steps, {_days(cost.wall_seconds)}, "
        f"{format_count(cost.gpu_hours)} device-hours",
        f"failures   one in {goodput.mttf_seconds / 3600:.3g} h, {goodput.failures:.2g} expected; "
        f"a checkpoint every {goodput.interval_seconds / 60:.3g} min, goodput {goodput.fraction:.1%}",
    ]
    if cost.price is not None:
        lines.append(f"price      {cost.price:,.0f}")
    if cost.energy_kwh is not None:
        lines.append(f"energy     {format_count(cost.energy_kwh)} kWh")
    return lines


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.3g} days" if seconds >= 86400 else format_duration(seconds)


def _search(plan: Plan, resolved: Resolved) -> list[str]:
    found = plan.found
    if not found.best:
        need = format_bytes(found.nearest.memory.device)
        return [
            f"none of {found.tried} layouts of this step fits",
            f"the smallest needs {need}: {_words(found.nearest.layout)}",
        ]
    lines = [f"fastest of {found.tried} layouts of the same step"]
    for place, one in enumerate(found.best[:_SHOWN], 1):
        change = " ".join(overrides(plan.asked.layout, one.layout)) or "as configured"
        lines.append(
            f"  {place}. {format_count(one.tokens_per_second):>8} tokens/s  {one.mfu:6.1%}  "
            f"{format_bytes(one.memory.device):>10}  {_words(one.layout)}; limited by {one.limited_by}\n"
            f"     {change}"
        )
    return [*lines, "", *_NOT_OFFERED]


def _words(layout: Layout) -> str:
    words = [f"ZeRO-{layout.zero_stage}", f"{layout.accumulation} x {layout.micro_batch} samples a rank"]
    if layout.checkpointing != "none":
        words.append(f"{layout.checkpointing} checkpointing")
    if layout.sequence > 1:
        words.append(f"{layout.sequence} ranks a sequence")
    if layout.expert > 1:
        words.append(f"{layout.expert} ranks the experts")
    if layout.hpz > 1:
        words.append(f"hpZ of {layout.hpz} ranks")
    if layout.offload != "none":
        words.append(f"offload {layout.offload}")
    return ", ".join(words)
