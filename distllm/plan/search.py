"""The fastest layout that fits: every micro-batch, stage, checkpointing, sequence and expert degree is tried.

There are a few hundred combinations and each costs microseconds, so none is pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from distllm.config.steps import divisors
from distllm.plan.estimate import Estimate
from distllm.plan.layout import Checkpointing, Layout, Offload
from distllm.plan.work import Work

_CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "selective", "full")


@dataclass(frozen=True, slots=True)
class Space:
    """What a search may choose from."""

    zero_stages: Sequence[int] = (0, 1, 2, 3)
    checkpointing: Sequence[Checkpointing] = _CHECKPOINTING
    sequence: Sequence[int] = (1, 2, 4, 8)
    expert: Sequence[int] = (1,)
    hpz: Sequence[int] = (1,)
    offload: Sequence[Offload] = ("none", "optimizer")


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search.

    Attributes:
        best: feasible layouts, fastest first, one for each kind of layout.
        nearest: the layout that needs least memory, whether it fits or not.
        tried: how many were looked at.
    """

    best: list[Estimate]
    nearest: Estimate
    tried: int


def layouts(work: Work, ranks: int, seq_len: int, tokens_per_step: int, space: Space) -> Iterator[Layout]:
    """Yield every way to take a step of ``tokens_per_step`` on ``ranks``."""
    samples = tokens_per_step // seq_len
    for sequence in space.sequence:
        # Ulysses hands whole heads to ranks; those that share a key/value head get a copy each
        if ranks % sequence or seq_len % sequence or work.heads % sequence:
            continue
        if work.kv_heads % sequence and sequence % work.kv_heads:
            continue
        data = ranks // sequence
        if samples % data:
            continue
        own = samples // data
        kinds = list(_kinds(work, ranks, sequence, space))
        for micro in divisors(own):
            for stage, offload, expert, hpz in kinds:
                for kept in space.checkpointing:
                    yield Layout(
                        ranks=ranks,
                        seq_len=seq_len,
                        micro_batch=micro,
                        accumulation=own // micro,
                        zero_stage=stage,
                        checkpointing=kept,
                        sequence=sequence,
                        expert=expert,
                        hpz=hpz,
                        offload=offload,
                    )


def _kinds(work: Work, ranks: int, sequence: int, space: Space) -> Iterator[tuple[int, Offload, int, int]]:
    """Yield the stages, offloads, expert degrees and copies of hpZ that go together."""
    for stage in space.zero_stages:
        for offload in space.offload:
            for expert in space.expert:
                divides = ranks % expert == 0 and (expert == 1 or work.experts % expert == 0)
                alone = expert == 1 or (sequence == 1 and offload == "none")
                if divides and alone and (offload == "none" or stage >= 2):
                    yield from ((stage, offload, expert, hpz) for hpz in (space.hpz if stage == 3 else (1,)))


def search(candidates: Iterator[Layout], judge: Callable[[Layout], Estimate]) -> Found:
    """Return the fastest feasible candidates, the best micro-batch of each kind only.

    Raises:
        ValueError: there are no candidates.
    """
    best: dict[Layout, Estimate] = {}
    nearest: Estimate | None = None
    tried = 0
    for layout in candidates:
        found = judge(layout)
        tried += 1
        if nearest is None or found.memory.device < nearest.memory.device:
            nearest = found
        if not found.fits:
            continue
        kind = replace(layout, micro_batch=1, accumulation=1)
        if kind not in best or found.time.total < best[kind].time.total:
            best[kind] = found
    if nearest is None:
        raise ValueError("no layout to try")
    # equally fast ones: the one that leaves more memory first
    order = sorted(best.values(), key=lambda found: (found.time.total, found.memory.device))
    return Found(order, nearest, tried)
