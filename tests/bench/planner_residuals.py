"""Every published figure beside the planner's own, as docs/planner-residuals.md prints them.

``python tests/bench/planner_residuals.py``; ``... runs`` prints docs/planner-runs.csv, and ``... fit`` fits
anew, which takes a minute.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from planner_errors import (
    Residual,
    median_error,
    memory_residuals,
    mfu_residuals,
    rank_correlation,
    speed_residuals,
)
from planner_fit import Fit, fit
from planner_tables import ASKED, ATTENTION_TFLOPS, BLIND, FIT, FURTHER, RUNS, points, read_table

from distllm.plan.fitted import FITTED

_MEMORY_TABLES = ("nanotron_h100", "deepspeed_h200")
_HEADER = ("| Figure | Rows | Median error | Rank correlation | Wanted |", "|---|---|---|---|---|")


def headline() -> str:
    """Return the figures that the planner is judged by."""
    rows = [
        *_HEADER,
        _line("MFU, blind: nanotron, Megatron, torchtitan, DeepSpeed", _mfu(ASKED), "10 %, 0.9"),
        _line("MFU, blind: further tables", _mfu(FURTHER)),
        _line("MFU, all of these", _mfu(BLIND)),
        _line("Memory, nanotron and H200", _memory(_MEMORY_TABLES), "8 %"),
        _line("MFU, every nanotron run", mfu_residuals(points(RUNS), FITTED)),
    ]
    return "\n".join(rows)


def summary() -> str:
    """Return the figures of each table, and of other choices of rows."""
    runs = list(points(RUNS))
    rows = [
        *_HEADER,
        *(_line(f"MFU, {read_table(name)['title']}", _mfu([name])) for name in (FIT, *BLIND)),
        _line("tokens/s, all blind", [r for name in BLIND for r in speed_residuals(points(name), FITTED)]),
        _line("Memory, all blind", _memory(BLIND)),
        _line("Memory, every nanotron run", memory_residuals(runs)),
        _line(
            "MFU, nanotron runs without tensor parallelism",
            mfu_residuals((run for run in runs if run.layout.tensor == 1), FITTED),
        ),
        _line(
            "MFU, nanotron runs on 8 and 16 GPUs",
            mfu_residuals((run for run in runs if run.layout.ranks <= 16), FITTED),
        ),
    ]
    return "\n".join(rows)


def residuals() -> str:
    """Return one table for each source."""
    return "\n\n".join("\n".join(_source(name)) for name in (FIT, *BLIND))


def runs() -> str:
    """Return each of nanotron's runs as a line of comma-separated values."""
    found = list(points(RUNS))
    pairs = zip(mfu_residuals(found, FITTED), memory_residuals(found), strict=True)
    lines = ["run,MFU % published,MFU % predicted,GB published,GB predicted"]
    lines += [
        f"{mfu.label},{mfu.published:.2f},{mfu.predicted:.2f},{memory.published:.1f},{memory.predicted:.1f}"
        for mfu, memory in pairs
    ]
    return "\n".join(lines)


def _mfu(names) -> list[Residual]:
    return [residual for name in names for residual in mfu_residuals(points(name), FITTED)]


def _memory(names) -> list[Residual]:
    return [residual for name in names for residual in memory_residuals(points(name))]


def _line(figure: str, found: list[Residual], wanted: str = "") -> str:
    ranked = f"{rank_correlation(found):.3f}" if len(found) > 1 else ""
    return f"| {figure} | {len(found)} | {median_error(found):.1%} | {ranked} | {wanted} |"


def _source(name: str) -> Iterator[str]:
    table, utilisation, memory = read_table(name), _mfu([name]), _memory([name])
    yield f"## {table['title']}"
    yield ""
    yield (
        f"Source: {table['source']}. Assumed: {table['assumed']}. Convention: {table['convention']}. "
        f"Median error {median_error(utilisation):.1%}."
    )
    for unit, rows in (("MFU %", utilisation), ("GB", memory)):
        if rows:
            yield from ("", f"| Row | {unit} published | predicted | error |", "|---|---|---|---|")
            yield from map(_row, rows)


def _row(residual: Residual) -> str:
    return (
        f"| {residual.label} | {residual.published:.2f} | {residual.predicted:.2f} | {residual.error:+.1%} |"
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["fit"]:
        print(fit(list(points(FIT)), Fit(FITTED, ATTENTION_TFLOPS["triton"])))
    elif sys.argv[1:] == ["runs"]:
        print(runs())
    else:
        print(headline(), summary(), residuals(), sep="\n\n")
