"""Every published figure beside the planner's own, as the Markdown of docs/planner.md.

``python tests/bench/planner_residuals.py``; with ``fit`` also the fit, which takes a minute.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from planner_tables import (
    ATTENTION_TFLOPS,
    BLIND,
    FIT,
    Fit,
    Residual,
    error_that_leaves,
    fit,
    left_by_chance,
    median_error,
    memory_residuals,
    mfu_residuals,
    needed_product_speed,
    points,
    product_speed,
    rank_correlation,
    read_table,
    speed_residuals,
    without_worst,
)

from distllm.plan.fitted import FITTED
from distllm.plan.profile import machine_of_profile

_MEMORY_TARGETS = ("nanotron_h100", "deepspeed_h200")


def residuals() -> str:
    """Return the summary, then one table for each source."""
    utilisation, memory, speed = {}, {}, []
    for name in (FIT, *BLIND):
        found = list(points(name, machine_of_profile))
        utilisation[name] = mfu_residuals(found, FITTED)
        memory[name] = memory_residuals(found)
        if name in BLIND:
            speed += speed_residuals(found, FITTED)
    blind = [residual for name in BLIND for residual in utilisation[name]]
    wanted = [residual for name in _MEMORY_TARGETS for residual in memory[name]]
    fitted = utilisation[FIT]
    others, odd = without_worst(blind)
    lines = [
        "| Figure | Rows | Predicted | Wanted |",
        "|---|---|---|---|",
        _summary("MFU, median error, blind", len(blind), median_error(blind), "at most 10 %"),
        _summary("Memory, median error, nanotron and H200", len(wanted), median_error(wanted), "at most 8 %"),
        f"| Rank correlation of MFU, blind | {len(blind)} | {rank_correlation(blind):.2f} | at least 0.9 |",
        *(
            f"| within {read_table(name)['title']} | {len(utilisation[name])} | "
            f"{rank_correlation(utilisation[name]):.2f} | |"
            for name in BLIND
        ),
        f"| Rank correlation of tokens/s, blind | {len(speed)} | {rank_correlation(speed):.2f} | |",
        f"| Rank correlation of memory, nanotron and H200 | {len(wanted)} "
        f"| {rank_correlation(wanted):.2f} | |",
        f"| Rank correlation of MFU left by random errors of that median | {len(blind)} | "
        f"{left_by_chance(blind):.2f} | |",
        f"| Median of random errors that would leave a rank correlation of 0.9 | {len(blind)} | "
        f"{error_that_leaves(blind, 0.9):.1%} | |",
        f"| Rank correlation of MFU without {odd.label} | {len(others)} | {rank_correlation(others):.2f} | |",
        _summary("MFU, median error, the fitted table", len(fitted), median_error(fitted), ""),
    ]
    lines += ["", *_product_speeds()]
    for name in (FIT, *BLIND):
        lines += ["", *_source(name, utilisation[name], memory[name])]
    return "\n".join(lines)


def _summary(figure: str, rows: int, error: float, wanted: str) -> str:
    return f"| {figure} | {rows} | {error:.1%} | {wanted} |"


def _product_speeds() -> list[str]:
    """Return the speed of products that would explain the best row of each model of two widths."""
    lines = [
        "| Width | Best row | Products predicted, TFLOP/s | needed for what is published |",
        "|---|---|---|---|",
    ]
    for width in (2048, 4096):
        for name in (FIT, *BLIND):
            found = [point for point in points(name, machine_of_profile) if point.work.hidden == width]
            for model in dict.fromkeys(point.label.split()[0] for point in found):
                best = max(
                    (point for point in found if point.label.split()[0] == model), key=lambda point: point.mfu
                )
                lines.append(
                    f"| {width} | {read_table(name)['title'].split(',')[0]} {best.label} "
                    f"| {product_speed(best, FITTED) / 1e12:.0f} | {needed_product_speed(best) / 1e12:.0f} |"
                )
    return lines


def _source(name: str, utilisation: Sequence[Residual], memory: Sequence[Residual]) -> list[str]:
    table = read_table(name)
    lines = [
        f"### {table['title']}",
        "",
        f"Source: {table['source']}. Assumed: {table['assumed']}. Convention: {table['convention']}. "
        f"Median error {median_error(list(utilisation)):.1%}.",
        "",
        "| Row | MFU % published | predicted | error |",
        "|---|---|---|---|",
        *(_row(residual) for residual in utilisation),
    ]
    if memory:
        lines += ["", "| Row | GB published | predicted | error |", "|---|---|---|---|"]
        lines += [_row(residual) for residual in memory]
    return lines


def _row(residual: Residual) -> str:
    return (
        f"| {residual.label} | {residual.published:.2f} | {residual.predicted:.2f} | {residual.error:+.1%} |"
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["fit"]:
        print(fit(list(points(FIT, machine_of_profile)), Fit(FITTED, ATTENTION_TFLOPS["triton"])))
    print(residuals())
