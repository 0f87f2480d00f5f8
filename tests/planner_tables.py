"""Published figures of other frameworks, what the planner says to them, and the fit on one table.

The tables are JSON files in ``tests/anchors``, each with its source and with what it does not print
and had to be assumed. The efficiencies of `distllm.plan.fitted` come from the table `FIT`; the
others are predicted with them and never looked at by the fit.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

from distllm.plan.conventions import CONVENTIONS
from distllm.plan.layout import Layout, Software
from distllm.plan.machine import Machine
from distllm.plan.memory import peak_memory
from distllm.plan.speed import Efficiency, step_time
from distllm.plan.work import Work

FIT = "llm_foundry_h100"
BLIND = ("nanotron_h100", "megatron_h100", "torchtitan_h100", "deepspeed_h200")
_DIRECTORY = Path(__file__).parent / "anchors"
# FlashAttention-3 over FlashAttention-2 on H100, forward and backward together, head width 128, causal,
# 8k: (1/306 + 2.5/166) / (1/660 + 2.5/575) of Dao-AILab/flash-attention, issue 1893.
_FLASH_3 = 3.13
# cuDNN's over FlashAttention-2's, the same, at 4k: (1/319 + 2.5/310) / (1/518 + 2.5/499), figures 5 and 6 of
# Shah et al. 2024 (FlashAttention-3).
_CUDNN = 1.61
_ATTENTION = {"fa3": _FLASH_3, "cudnn": _CUDNN}


@dataclass(frozen=True, slots=True)
class Point:
    """One published row, ready to be predicted."""

    table: str
    label: str
    work: Work
    layout: Layout
    software: Software
    machine: Machine
    convention: str
    mfu: float
    memory_gb: float | None

    def predicted_mfu(self, efficiency: Efficiency) -> float:
        """Return the utilisation, in per cent, under the table's own convention."""
        seconds = step_time(self.work, self.layout, self.software, self.machine, efficiency).total
        flops = CONVENTIONS[self.convention](self.work, self.layout.seq_len) * self.layout.tokens_per_step
        return 100 * flops / (seconds * self.layout.ranks * 989e12)

    def predicted_memory_gb(self) -> float:
        """Return the peak of the fullest rank, in 10**9 bytes."""
        return peak_memory(self.work, self.layout, self.software).device / 1e9


@dataclass(frozen=True, slots=True)
class Residual:
    """A published figure beside the predicted one."""

    table: str
    label: str
    published: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative error."""
        return self.predicted / self.published - 1


def read_table(name: str) -> dict[str, Any]:
    """Return a table of `FIT` or `BLIND` as it is written down."""
    content: dict[str, Any] = json.loads((_DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
    return content


def points(name: str, machine_of: Callable[[str], Machine]) -> Iterator[Point]:
    """Yield the rows of a table.

    Args:
        name: one of `FIT` and `BLIND`.
        machine_of: returns the machine of a cluster profile.
    """
    table = read_table(name)
    machine = machine_of(table["machine"]).throttled(table.get("throttle", 1.0))
    if "memory_bandwidth" in table:
        machine = dataclasses.replace(machine, memory_bandwidth=table["memory_bandwidth"])
    for row in table["rows"]:
        yield _point(name, table, row, machine)


def _point(name: str, table: Mapping[str, Any], row: Mapping[str, Any], machine: Machine) -> Point:
    work = Work(**table["models"][row["model"]])
    layout = Layout(
        ranks=row["gpus"],
        seq_len=row.get("seq_len") or table["seq_len"],
        micro_batch=row["micro_batch"],
        accumulation=row.get("accumulation", 1),
        zero_stage=row.get("zero_stage", 3),
        checkpointing=row.get("checkpointing", "none"),
        tensor=row.get("tensor", 1),
        pipeline=row.get("pipeline", 1),
        virtual_stages=row.get("virtual_stages", 1),
        offload=row.get("offload", "none"),
    )
    stage = f"stage_{layout.zero_stage}"
    habits = {**table.get(stage, {})}
    habits |= {key: row[key] for key in ("compiled", "tensor_exposed", "gathers") if key in row}
    if kernel := row.get("attention") or table.get("attention"):
        machine = dataclasses.replace(machine, attention_share=_ATTENTION[kernel])
    convention = table["convention"]
    mfu = row.get("mfu")
    if mfu is None:
        per_token = CONVENTIONS[convention](work, layout.seq_len)
        mfu = 100 * row["tokens_per_second"] * per_token / 989e12
    return Point(
        table=name,
        label=_label(row, layout),
        work=work,
        layout=layout,
        software=Software(**{**table["software"], **habits}),
        machine=machine,
        convention=convention,
        mfu=mfu,
        memory_gb=row.get("memory_gb"),
    )


def _label(row: Mapping[str, Any], layout: Layout) -> str:
    words = [
        row["model"],
        f"{layout.ranks} GPUs",
        f"{layout.seq_len}",
        f"{layout.accumulation}x{layout.micro_batch}",
    ]
    if layout.tensor * layout.pipeline > 1:
        words.append(f"tp{layout.tensor} pp{layout.pipeline}")
    words.append(f"z{layout.zero_stage}")
    words += [layout.checkpointing] if layout.checkpointing != "none" else []
    words += [key for key in ("compiled", "tensor_exposed", "offload") if row.get(key)]
    return " ".join(words).replace("tensor_exposed", "async-tp")


def mfu_residuals(found: list[Point], efficiency: Efficiency) -> list[Residual]:
    """Return each row's utilisation beside the predicted one."""
    return [Residual(p.table, p.label, p.mfu, p.predicted_mfu(efficiency)) for p in found]


def speed_residuals(found: list[Point], efficiency: Efficiency) -> list[Residual]:
    """Return tokens/s of each row beside the predicted ones."""
    rows = []
    for point, residual in zip(found, mfu_residuals(found, efficiency), strict=True):
        flops = CONVENTIONS[point.convention](point.work, point.layout.seq_len)
        scale = point.layout.ranks * 989e12 / flops / 100
        rows.append(
            Residual(point.table, point.label, residual.published * scale, residual.predicted * scale)
        )
    return rows


def memory_residuals(found: list[Point]) -> list[Residual]:
    """Return the peak memory of each row that states one beside the predicted one."""
    return [
        Residual(p.table, p.label, p.memory_gb, p.predicted_memory_gb())
        for p in found
        if p.memory_gb is not None
    ]


def median_error(residuals: list[Residual]) -> float:
    """Return the median of the absolute relative errors."""
    return median(abs(residual.error) for residual in residuals)


def rank_correlation(residuals: list[Residual]) -> float:
    """Return Spearman's correlation of published and predicted figures."""
    published = _ranks([residual.published for residual in residuals])
    predicted = _ranks([residual.predicted for residual in residuals])
    mean = (len(residuals) - 1) / 2
    covariance = sum((a - mean) * (b - mean) for a, b in zip(published, predicted, strict=True))
    spread = sum((a - mean) ** 2 for a in published) * sum((b - mean) ** 2 for b in predicted)
    return covariance / math.sqrt(spread)


def left_by_chance(residuals: list[Residual], trials: int = 200) -> float:
    """Return the rank correlation that published figures keep, on average, with themselves disturbed.

    Errors are independent and log-normal, with the median size of those of ``residuals``: what would be left
    if the predictions knew the order of everything but for errors of their size.
    """
    generator = random.Random(0)
    sigma = math.log1p(median_error(residuals)) / NormalDist().inv_cdf(0.75)

    def once() -> float:
        disturbed = [r.published * math.exp(generator.gauss(0.0, sigma)) for r in residuals]
        pairs = zip(residuals, disturbed, strict=True)
        return rank_correlation([dataclasses.replace(r, predicted=value) for r, value in pairs])

    return sum(once() for _ in range(trials)) / trials


def without_worst(residuals: list[Residual]) -> tuple[list[Residual], Residual]:
    """Return all but the residual whose absence does most for the rank correlation, and that one."""

    def rest(index: int) -> list[Residual]:
        return residuals[:index] + residuals[index + 1 :]

    worst = max(range(len(residuals)), key=lambda index: rank_correlation(rest(index)))
    return rest(worst), residuals[worst]


def _ranks(values: list[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    for place, index in enumerate(order):
        ranks[index] = float(place)
    return ranks


_LEAST = 0.01
"""The least efficiency that is tried."""


def fit(found: list[Point], start: Efficiency) -> Efficiency:
    """Return the efficiencies with the least sum of squared relative errors over ``found``.

    A pattern search: each number is moved up and down by a factor that shrinks when nothing helps.
    Shares stay at most 1, and above zero, from where no factor leads back.
    """
    best, step = start, 0.2
    loss = _loss(found, best)
    while step > 1e-3:
        improved = False
        for item in dataclasses.fields(Efficiency):
            for factor in (1 + step, 1 / (1 + step)):
                value = min(max(getattr(best, item.name) * factor, _LEAST), 1.0)
                candidate = dataclasses.replace(best, **{item.name: value})
                found_loss = _loss(found, candidate)
                if found_loss < loss:
                    best, loss, improved = candidate, found_loss, True
        if not improved:
            step /= 2
    return best


def _loss(found: list[Point], efficiency: Efficiency) -> float:
    return sum((point.predicted_mfu(efficiency) / point.mfu - 1) ** 2 for point in found)
