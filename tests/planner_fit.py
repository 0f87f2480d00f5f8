"""The fit of the planner's efficiencies on one published table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from planner_tables import Point

from distllm.plan.machine import Efficiency

_LEAST_SHARE = 0.01


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
            value = min(max(getattr(self.efficiency, item.name) * factor, _LEAST_SHARE), 1.0)
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
