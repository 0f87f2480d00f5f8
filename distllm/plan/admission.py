"""Refusing a run that is too large for its memory, with settings that are not."""

from __future__ import annotations

from distllm.config.problems import Problems
from distllm.config.resolve import Resolved
from distllm.plan.experiment import device_memory, host_memory, layout_of, space_of
from distllm.plan.layout import Layout
from distllm.plan.memory import Memory, peak_memory
from distllm.plan.search import layouts
from distllm.plan.software import software_of
from distllm.plan.work import Work, work_of
from distllm.units import format_bytes

# A run is refused only if it would not fit even where the prediction is this much too high.
_DOUBT = 0.1
_ORDER = ("none", "selective", "full")
_OFFLOADS = {"none": "none", "optimizer": "cpu", "disk": "nvme", "mapped": "nvme"}


def check_memory(resolved: Resolved, problems: Problems) -> None:
    """Note that the run cannot fit into the memory of its devices, and what would."""
    limit = device_memory(resolved)
    if limit is None:
        return
    work, layout = work_of(resolved.shape, resolved.trainable_params), layout_of(resolved)
    need, room = _need(resolved, work, layout), host_memory(resolved)
    if need.host * (1 - _DOUBT) > room:
        problems.add(
            f"what is offloaded needs about {format_bytes(need.host)} of host memory a rank, and each has "
            f"{format_bytes(room)}",
            where="engine.offload, cluster.hardware.host_memory_gb",
            remedy=_nearest(resolved, work, layout, limit),
        )
    if need.device * (1 - _DOUBT) <= limit:
        return
    parts = sorted(need.parts().items(), key=lambda part: -part[1])
    largest = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts[:3])
    problems.add(
        f"a rank needs about {format_bytes(need.device)} of memory ({largest}) and has {format_bytes(limit)}",
        where="model, engine, train.tokens_per_step",
        remedy=_nearest(resolved, work, layout, limit),
    )


def _need(resolved: Resolved, work: Work, layout: Layout) -> Memory:
    return peak_memory(work, layout, software_of(resolved.config, layout))


def _nearest(resolved: Resolved, work: Work, asked: Layout, limit: float) -> str:
    """Return the overrides of the feasible layout that changes least, or how much the smallest lacks."""
    config = resolved.config
    candidates = layouts(work, asked.ranks, asked.seq_len, config.train.tokens_per_step, space_of(config))
    needs = [(layout, _need(resolved, work, layout)) for layout in candidates]
    judged = [(layout, need.device) for layout, need in needs if need.host <= host_memory(resolved)]
    feasible = [layout for layout, need in judged if need <= limit]
    if feasible:
        nearest = min(feasible, key=lambda layout: _changes(asked, layout))
        return f"nearest settings that fit: {' '.join(overrides(asked, nearest))}"
    layout, need = min(judged, key=lambda pair: pair[1])
    return (
        f"even {' '.join(overrides(asked, layout)) or 'the settings given'} would need "
        f"{format_bytes(need)}: use a smaller model, shorter data.seq_len or more ranks"
    )


def _changes(asked: Layout, layout: Layout) -> tuple[int, int, int, int]:
    """Return what orders layouts by how far they are from the one asked for."""
    return (
        len(overrides(asked, layout)),
        _ORDER.index(layout.checkpointing),
        abs(layout.zero_stage - asked.zero_stage),
        -layout.micro_batch,
    )


def overrides(asked: Layout, layout: Layout) -> list[str]:
    """Return the command-line overrides that turn one layout into another of the same step."""
    changed = []
    if layout.tokens_per_rank != asked.tokens_per_rank:
        changed.append(f"engine.micro_batch_tokens={layout.tokens_per_rank}")
    if layout.sequence != asked.sequence:
        changed.append(f"engine.sequence_ranks={layout.sequence}")
    if layout.expert != asked.expert:
        changed.append(f"engine.expert_ranks={layout.expert}")
    if layout.zero_stage != asked.zero_stage:
        changed.append(f"engine.zero_stage={layout.zero_stage}")
    if layout.checkpointing != asked.checkpointing:
        changed.append(f"engine.activation_checkpointing={layout.checkpointing}")
    if layout.hpz != asked.hpz:
        changed.append(f"engine.hpz_ranks={layout.hpz}")
    if layout.offload != asked.offload:
        changed.append(f"engine.offload={_OFFLOADS[layout.offload]}")
        if _OFFLOADS[asked.offload] == "nvme":  # without it there is nothing to put into its directory
            changed.append("engine.offload_dir=null")
    return changed
