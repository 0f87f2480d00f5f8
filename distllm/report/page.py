"""The report as one HTML file: style, script and data inside, and a policy that forbids the network.

Curves are drawn by a small script of ours, at the width of the screen they are on, in colours that
follow its light or dark mode: a plotting library would be megabytes in every file. All else is plain
HTML and works without the script.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from distllm.report.facts import RunFacts, columns, to_script
from distllm.report.sections import (
    comparison,
    configuration,
    differences,
    environments,
    evaluations,
    lead,
    samples,
    spikes,
    tiles,
    where_time_went,
)

# evals: shown with the evaluations; log: can be shown so, or is always; skips: without skipped steps.
CHARTS: tuple[Mapping[str, Any], ...] = (
    {
        "column": "loss",
        "title": "Loss, nats per token",
        "format": "plain",
        "evals": True,
        "log": True,
        "skips": True,
    },
    {
        "column": "perplexity",
        "title": "Perplexity",
        "format": "plain",
        "evals": True,
        "log": "always",
        "skips": True,
    },
    {"column": "lr", "title": "Learning rate", "format": "rate", "log": True},
    {"column": "grad_norm", "title": "Gradient norm", "format": "plain", "log": True, "skips": True},
    {"column": "tokens_per_second", "title": "Tokens per second", "format": "count"},
    {"column": "mfu", "title": "MFU", "format": "percent"},
    {"column": "data_wait_fraction", "title": "Waiting for data", "format": "percent"},
    {"column": "memory_bytes", "title": "Memory of rank 0", "format": "bytes"},
)
# Measures of evaluations that have parts, such as canaries by how often they were planted: a line for each.
_PARTED: Mapping[str, str] = {
    "exposure": "Exposure of canaries, bits",
    "sources": "Validation loss by source, nats per token",
}
_NO_CURVES = {
    "step", "tokens", "time", "attempt", "skipped", "skipped_steps", "damaged_samples", "rewinds",
    "eta_seconds", "overhead_fraction", "seconds",
}  # fmt: skip
_SECTIONS = (
    ("curves", "Curves"),
    ("time", "Time and faults"),
    ("spikes", "Skipped steps"),
    ("evaluations", "Evaluations"),
    ("samples", "Samples"),
    ("configuration", "Configuration"),
    ("environment", "Environment"),
)


def render(runs: Sequence[RunFacts]) -> str:
    """Return the page of one run, or of several side by side; the others are compared with the first."""
    data = page_data(runs)
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    title = " · ".join(run.name for run in runs)
    sections = {
        "curves": _curves(runs),
        "time": "".join(map(where_time_went, runs)),
        "spikes": spikes(runs),
        "evaluations": evaluations(runs),
        "samples": samples(runs),
        "configuration": (differences(runs) if len(runs) > 1 else "") + "".join(map(configuration, runs)),
        "environment": environments(runs),
    }
    body = "".join(
        f'<section id="{key}"><h2>{heading}</h2>{sections[key]}</section>' for key, heading in _SECTIONS
    )
    links = "".join(f'<a href="#{key}">{heading}</a>' for key, heading in _SECTIONS)
    head = tiles(runs[0]) if len(runs) == 1 else comparison(runs)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} · distllm report</title>
<style>{_asset("report.css")}</style>
</head>
<body>
<nav><div><b>distllm</b>{links}
<button id="theme" title="light or dark" aria-label="light or dark">◐</button></div></nav>
<main>
<header><h1>{escape(title)}</h1>{lead(runs)}</header>
{head}
{body}
<footer>Written by distllm report from the files of the run directory; this page loads nothing.</footer>
</main>
<script type="application/json" id="data">{to_script(data)}</script>
<script>{script}</script>
</body>
</html>
"""


def page_data(runs: Sequence[RunFacts]) -> dict[str, Any]:
    """Return the data of the curves: the columns of each run's steps and evaluations."""
    shown = [
        {"name": run.name, "steps": columns(run.steps), "evals": _with_time(run, columns(run.evals))}
        for run in runs
    ]
    known = {chart["column"] for chart in CHARTS} | _NO_CURVES
    extra = sorted({name for run in shown for part in (run["steps"], run["evals"]) for name in part} - known)
    parted = {name: [part for part in extra if part.startswith(f"{name}_")] for name in _PARTED}
    charts = [
        {"column": name, "columns": sorted(parts, key=_by_number), "title": _PARTED[name], "format": "plain",
         "evals": True}
        for name, parts in parted.items()
        if parts
    ]  # fmt: skip
    single = [name for name in extra if not any(name in parts for parts in parted.values())]
    more = [{"column": name, "title": _words(name), "format": "plain", "evals": True} for name in single]
    return {"runs": shown, "charts": [*CHARTS, *charts, *more]}


def _by_number(column: str) -> tuple[int, str]:
    """Sort ``x8`` before ``x64``."""
    return len(column), column


def _with_time(run: RunFacts, evals: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Add the time of each evaluation, which is that of the step before it."""
    times = {row["step"]: row["time"] for row in run.steps}
    latest, found = 0.0, []
    for step in evals.get("step", []):
        latest = times.get(step, latest)
        found.append(latest)
    return {**evals, "time": found} if evals else evals


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _curves(runs: Sequence[RunFacts]) -> str:
    buttons = "".join(
        f'<button data-run="{index}" aria-pressed="true" style="--c:var(--c{index % 8})">'
        f'<span class="dot"></span>{escape(run.name)}</button>'
        for index, run in enumerate(runs)
        if len(runs) > 1
    )
    return f"""<div class="controls">{buttons}
<label>over <select id="axis"><option value="step">steps</option><option value="tokens">tokens</option>
<option value="time">time</option></select></label>
<label>smooth <input id="smooth" type="range" min="0" max="0.98" step="0.02" value="0"></label>
<label><input id="log" type="checkbox"> logarithmic</label></div>
<div class="charts" id="charts"></div>
<p class="key"><i class="line"></i>training<i class="dash"></i>validation<i class="tick"></i>a skipped step;
its values are outside the curve</p>
<noscript><p>The curves are drawn by a script, which is switched off here; metrics.jsonl has the numbers.</p>
</noscript>"""


def _asset(name: str) -> str:
    return (files("distllm.report") / "static" / name).read_text(encoding="utf-8")
