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

from distllm.config.schema_hardware import HardwareConfig
from distllm.plan.blocks import block_passes
from distllm.plan.conventions import CONVENTIONS
from distllm.plan.fitted import FITTED
from distllm.plan.layout import Layout, Software
from distllm.plan.machine import Efficiency, Machine
from distllm.plan.memory import peak_memory, stage_peaks
from distllm.plan.speed import step_time
from distllm.plan.work import Work

FIT = "llm_foundry_h100"
BLIND = ("nanotron_h100", "megatron_h100", "torchtitan_h100", "deepspeed_h200")
_DIRECTORY = Path(__file__).parent / "anchors"
# Fused attention on an H100: FLOP/s of long causal rows with heads of 128, forward and backward. Each figure
# is a published one, over what `distllm.plan.blocks` takes off for its length of row.
# fa2: as in conf/cluster/h100.yaml. fa3: 660 forward, 575 backward at 8k (Dao-AILab/flash-attention
# issue 1893).
# cudnn: 518 and 499 at 4k (Shah et al. 2024, FlashAttention-3, figures 5 and 6).
# triton: llm-foundry's own kernel; no figure is published, so it is fitted with the efficiencies.
ATTENTION_TFLOPS = {"fa2": 335.0, "fa3": 636.0, "cudnn": 570.0, "triton": 186.1}


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
    kernel: str
    first_stage: bool

    def predicted_mfu(self, efficiency: Efficiency) -> float:
        """Return the utilisation, in per cent, under the table's own convention."""
        seconds = step_time(self.work, self.layout, self.software, self.machine, efficiency).total
        flops = CONVENTIONS[self.convention](self.work, self.layout.seq_len) * self.layout.tokens_per_step
        return 100 * flops / (seconds * self.layout.ranks * 989e12)

    def predicted_memory_gb(self) -> float:
        """Return the peak of the fullest rank, in 10**9 bytes."""
        if self.first_stage:
            return stage_peaks(self.work, self.layout, self.software)[0].device / 1e9
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
        if "samples" in row:
            yield _fastest([_point(name, table, choice, machine) for choice in _choices(row)])
        else:
            yield _point(name, table, row, machine)


def _choices(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row that states only a rank's samples with each micro-batch that its pipeline takes."""
    samples = row["samples"]
    for micro in (size for size in range(1, samples + 1) if samples % size == 0):
        # an interleaved pipeline takes its micro-batches in turns of all stages
        if samples // micro % row.get("pipeline", 1) == 0:
            yield {**row, "micro_batch": micro, "accumulation": samples // micro}


def _fastest(choices: list[Point]) -> Point:
    """Return the choice the planner would make: the fastest that it believes to fit."""
    room = choices[0].machine.memory_bytes * (1 - HardwareConfig().reserve) / 1e9
    return max(
        (choice for choice in choices if choice.predicted_memory_gb() <= room),
        key=lambda choice: choice.predicted_mfu(FITTED),
    )


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
    kernel = row.get("attention") or table["attention"]
    flops = ATTENTION_TFLOPS[kernel] * 1e12 * table.get("throttle", 1.0)
    machine = dataclasses.replace(machine, attention_flops=flops)
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
        kernel=kernel,
        first_stage=table.get("memory_of") == "first stage",
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


def product_speed(point: Point, efficiency: Efficiency) -> float:
    """Return the FLOP/s of the products of a block that ``efficiency`` means, forward and backward."""
    forward, backward = block_passes(point.work, point.layout, point.software, point.machine, efficiency)
    weights = (
        point.work.attentions * point.work.attention_params
        + point.work.active_experts * point.work.mlp_params
    )
    return 6 * weights / point.layout.tensor * point.layout.tokens_per_rank / (forward.gemm + backward.gemm)


def needed_product_speed(point: Point) -> float:
    """Return the FLOP/s of products that would make the prediction what is published, all else as it is."""
    low, high = 0.1, 10.0
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        scaled = dataclasses.replace(FITTED, gemm=middle * FITTED.gemm, operands=middle * FITTED.operands)
        low, high = (middle, high) if point.predicted_mfu(scaled) < point.mfu else (low, middle)
    return low * product_speed(point, FITTED)


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


def error_that_leaves(residuals: list[Residual], correlation: float) -> float:
    """Return the median size of random errors that leave ``correlation`` on average."""
    low, high = 0.0, 0.25
    while high - low > 1e-3:
        middle = (low + high) / 2
        left = left_by_chance(
            [dataclasses.replace(r, predicted=r.published * (1 + middle)) for r in residuals]
        )
        low, high = (middle, high) if left > correlation else (low, middle)
    return low


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


@dataclass(frozen=True, slots=True)
class Fit:
    """What is fitted: the planner's efficiencies, and the kernel of the fitted table."""

    efficiency: Efficiency
    triton_tflops: float

    def loss(self, found: list[Point]) -> float:
        """Return the mean absolute relative error over ``found``, which one odd row does not rule."""
        own = [self._with_kernel(point) for point in found]
        return sum(abs(point.predicted_mfu(self.efficiency) / point.mfu - 1) for point in own) / len(own)

    def _with_kernel(self, point: Point) -> Point:
        if point.kernel != "triton":
            return point
        machine = dataclasses.replace(point.machine, attention_flops=self.triton_tflops * 1e12)
        return dataclasses.replace(point, machine=machine)

    def moved(self, factor: float) -> Iterator[Fit]:
        """Yield itself with one number times ``factor``; shares stay at most 1, and above zero."""
        for item in dataclasses.fields(Efficiency):
            value = min(max(getattr(self.efficiency, item.name) * factor, _LEAST), 1.0)
            efficiency = dataclasses.replace(self.efficiency, **{item.name: value})
            yield dataclasses.replace(self, efficiency=efficiency)
        yield dataclasses.replace(self, triton_tflops=self.triton_tflops * factor)


def fit(found: list[Point], start: Fit) -> Fit:
    """Return what has the least loss over ``found``.

    A pattern search: each number is moved up and down by a factor that shrinks when nothing helps.
    """
    best, step = start, 0.2
    loss = best.loss(found)
    while step > 1e-3:
        improved = False
        for factor in (1 + step, 1 / (1 + step)):
            for candidate in best.moved(factor):
                found_loss = candidate.loss(found)
                if found_loss < loss:
                    best, loss, improved = candidate, found_loss, True
        if not improved:
            step /= 2
    return best
