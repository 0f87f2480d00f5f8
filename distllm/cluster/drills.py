"""Which faults `distllm chaos` injects in which runs, and how the runs must turn out. Imports no torch.

Faults from which a run recovers exactly share one run, one after the other; other faults have runs of
their own. The schedule is a pure function of the kinds, the seed and the number of ranks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distllm.config.faults import AROUND, Fault
from distllm.observe.ledger import Kind

Equality = Literal["exact", "close", "other"]
"""Compared with a run without faults: the same bits, the same up to rounding, or different steps."""

NUMBERS = ("nan", "spike")
SHARDS = ("corrupt_shard", "missing_shard")

SPIKE_STEP = 24
"""Before this step the guard has not seen enough steps to recognise a spike."""

STRAGGLER_STEPS = 20
_CLOSE = ("out_of_memory",)
_NEEDS_CHECKPOINTS = ("truncate_checkpoint", "flip_checkpoint", "delete_checkpoint")

SIGNS: dict[str, tuple[Kind, ...]] = {
    "kill": ("killed",),
    "term": ("stopped",),
    "stop": ("hang",),
    "hang": ("hang",),
    "skip_collective": ("hang", "failed"),
    "slow": ("straggler",),
    "nan": ("skipped",),
    "spike": ("skipped",),
    "bit_flip": ("corruption",),
    "out_of_memory": ("oom",),
    "truncate_checkpoint": ("killed",),
    "flip_checkpoint": ("killed",),
    "delete_checkpoint": ("killed",),
    "disk_full": ("save_failed",),
}
"""The events of the ledger that show that a kind of fault was noticed; other kinds leave no event."""


@dataclass(frozen=True, slots=True)
class Drill:
    """One run with faults.

    Attributes:
        name: of the run.
        faults: injected by its ranks.
        around: kinds of faults outside its ranks, in this order.
        steps: the step at which it stops.
        equality: how its steps must compare with those of the run without faults.
    """

    name: str
    faults: tuple[Fault, ...]
    around: tuple[str, ...]
    steps: int
    equality: Equality


def plan_drills(kinds: Sequence[str], *, seed: int, spacing: int, world_size: int) -> list[Drill]:
    """Distribute kinds of faults over runs, steps and ranks.

    Args:
        kinds: the kinds of faults, in the order in which they happen.
        seed: decides steps and ranks.
        spacing: steps from one fault to the next; a checkpoint is saved half way between them.
        world_size: number of ranks.
    """
    drawn = random.Random(seed)
    recover = [kind for kind in kinds if kind not in (*NUMBERS, *_CLOSE, *AROUND)]
    # Faults in checkpoints come late: they need one to damage and another to fall back to. A clock that was
    # set back stays so until its process ends, and rank 0 dates events by it, so that fault comes last.
    recover.sort(key=lambda kind: 2 * (kind in _NEEDS_CHECKPOINTS) + (kind == "clock_skew"))
    drills = []
    if recover:
        faults = _schedule(recover, drawn, spacing, world_size, first=spacing)
        drills.append(_drill("recover", faults, spacing, "exact"))
    if numbers := [kind for kind in kinds if kind in NUMBERS]:
        faults = _schedule(sorted(numbers), drawn, max(spacing, SPIKE_STEP // 2), world_size, first=spacing)
        drills.append(_drill("numbers", faults, spacing, "other"))
    if memory := [kind for kind in kinds if kind in _CLOSE]:
        drills.append(
            _drill("memory", _schedule(memory, drawn, spacing, world_size, spacing), spacing, "close")
        )
    if shards := tuple(kind for kind in kinds if kind in SHARDS):
        drills.append(Drill("shards", (), shards, spacing, "exact"))
    if servers := tuple(kind for kind in kinds if kind in AROUND and kind not in SHARDS):
        drills.append(Drill("servers", (), servers, spacing, "exact"))
    return drills


def save_every(spacing: int) -> int:
    """Return the steps between checkpoints in a drill."""
    return max(1, spacing // 2)


def _drill(name: str, faults: list[Fault], spacing: int, equality: Equality) -> Drill:
    last = max(fault.step + fault.steps for fault in faults)
    return Drill(name, tuple(faults), (), last + spacing // 2 + 1, equality)


def _schedule(
    kinds: Sequence[str], drawn: random.Random, spacing: int, world_size: int, first: int
) -> list[Fault]:
    faults, step, every = [], first, save_every(spacing)
    for kind in kinds:
        # Checkpoints are written in the background, so the disk stays full until the next one is due.
        steps = {"slow": STRAGGLER_STEPS, "disk_full": every}.get(kind, 1)
        at = step + drawn.randrange(max(1, spacing // 3))
        rank = drawn.randrange(world_size)
        if kind in _NEEDS_CHECKPOINTS:
            at = max(at, 2 * every + 1)
        elif kind == "disk_full":
            at = -(-at // every) * every  # when it saves
        elif kind == "spike":
            at = max(at, SPIKE_STEP)
        faults.append(Fault(kind, at, rank, steps))
        step = max(step + spacing, at + steps + 1)
    return faults
