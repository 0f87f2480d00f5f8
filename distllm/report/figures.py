"""The report's curves as PNG files, for papers and slides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distllm.errors import MissingDependency
from distllm.fsio import atomic_open
from distllm.units import format_bytes, format_count

_DOTS_PER_INCH = 160
_COLOURS = ("#2459c4", "#d9540b", "#16804a", "#9333a8", "#b3850a", "#0c7f92", "#c2285f", "#66707c")

_SHOWN: Mapping[str, Callable[[float], str]] = {
    "count": format_count,
    "bytes": format_bytes,
    "percent": lambda share: f"{100 * share:.3g}%",
}


def write_figures(data: Mapping[str, Any], directory: Path) -> list[Path]:
    """Write one file for each curve of `distllm.report.page.page_data`; return their paths.

    Steps that were skipped are gaps; validation is dashed, in the colour of its run.

    Raises:
        MissingDependency: matplotlib is not installed.
        StorageError: the directory cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency(
            "PNG files of the curves need matplotlib, which is not installed",
            where="png=true",
            remedy="pip install 'distllm[report]', or leave png=true out",
        ) from error
    written = []
    for chart in data["charts"]:
        drawable = [
            _drawable(part, column)
            for run in data["runs"]
            for part in _parts(run)
            for column in _columns(chart)
        ]
        if not any(drawable):
            continue
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        _draw(figure.subplots(), data["runs"], chart)
        path = directory / f"{chart['column']}.png"
        with atomic_open(path) as stream:
            figure.savefig(stream, format="png", dpi=_DOTS_PER_INCH)
        written.append(path)
    return written


def _draw(axes: Any, runs: Sequence[Mapping[str, Any]], chart: Mapping[str, Any]) -> None:
    lines = [(run, column) for run in runs for column in _columns(chart)]
    for index, (run, column) in enumerate(lines):
        colour = _COLOURS[index % len(_COLOURS)]
        steps, evals = _parts(run)
        if _drawable(steps, column):
            axes.plot(steps["step"], _counted(steps, chart, column), color=colour, lw=1.4, label=run["name"])
        if chart.get("evals") and _drawable(evals, column):
            values = _counted(evals, chart, column)
            what = column.removeprefix(f"{chart['column']}_") if "columns" in chart else "validation"
            label = f"{run['name']}, {what}"
            axes.plot(evals["step"], values, "--o", color=colour, lw=1.2, ms=3, label=label)
    if chart.get("log") == "always":
        axes.set_yscale("log")
    elif (shown := _SHOWN.get(chart["format"])) is not None:
        axes.yaxis.set_major_formatter(lambda value, _place: shown(value))
    axes.set_title(chart["title"], loc="left", fontsize=11)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _parts(run: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return run["steps"], run["evals"]


def _drawable(part: Mapping[str, Any], column: str) -> bool:
    return any(value is not None for value in part.get(column, ()))


def _columns(chart: Mapping[str, Any]) -> Sequence[str]:
    return chart.get("columns") or [chart["column"]]


def _counted(part: Mapping[str, Any], chart: Mapping[str, Any], column: str) -> list[float]:
    values = part[column]
    skipped = part["skipped"] if chart.get("skips") and "skipped" in part else [0] * len(values)
    return [
        float("nan") if value is None or skip else float(value)
        for value, skip in zip(values, skipped, strict=True)
    ]
