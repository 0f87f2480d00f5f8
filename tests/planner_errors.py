"""Published figures beside the planner's own, and how close they are."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import correlation, median

from planner_tables import Point

from distllm.plan.machine import Efficiency


@dataclass(frozen=True, slots=True)
class Residual:
    """A published figure beside the predicted one."""

    label: str
    published: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative error."""
        return self.predicted / self.published - 1


def mfu_residuals(found: Iterable[Point], efficiency: Efficiency) -> list[Residual]:
    """Return each row's utilisation beside the predicted one."""
    return [Residual(p.label, p.mfu, p.predicted_mfu(efficiency)) for p in found]


def speed_residuals(found: Iterable[Point], efficiency: Efficiency) -> list[Residual]:
    """Return tokens/s of each row beside the predicted ones."""
    rows = []
    for point in found:
        scale = point.layout.ranks * point.peak_flops / point.flops_per_token / 100
        rows.append(Residual(point.label, point.mfu * scale, point.predicted_mfu(efficiency) * scale))
    return rows


def memory_residuals(found: Iterable[Point]) -> list[Residual]:
    """Return the peak memory of each row that states one beside the predicted one."""
    return [Residual(p.label, p.memory_gb, p.predicted_memory_gb()) for p in found if p.memory_gb is not None]


def median_error(residuals: list[Residual]) -> float:
    """Return the median of the absolute relative errors."""
    return median(abs(residual.error) for residual in residuals)


def rank_correlation(residuals: list[Residual]) -> float:
    """Return Spearman's correlation of published and predicted figures."""
    published = _ranks([residual.published for residual in residuals])
    predicted = _ranks([residual.predicted for residual in residuals])
    return correlation(published, predicted)


def _ranks(values: list[float]) -> list[float]:
    """Return the place of each value among all; equal ones share the middle of their places."""
    order = sorted(values)
    return [(bisect_left(order, value) + bisect_right(order, value)) / 2 for value in values]
