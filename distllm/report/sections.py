"""The parts of the report that are plain HTML: numbers, tables, bars and texts of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from distllm.observe.goodput import CATEGORIES
from distllm.observe.logbook import MEANING, Logbook
from distllm.report.facts import Row, RunFacts, Spike, Try
from distllm.report.html import cells, clock, figure, number, table
from distllm.units import format_bytes, format_count, format_duration

_EVENT_COLOUR = {
    "skipped": "--bad", "rewind": "--rework", "failed": "--bad", "killed": "--bad", "oom": "--bad",
    "hang": "--hang", "corruption": "--bad", "stopped": "--warn", "done": "--good", "save_failed": "--bad",
    "straggler": "--warn",
}  # fmt: skip
_SHOWN_SAMPLES = 6
_SHOWN_TIMELINE = 12


def lead(runs: Sequence[RunFacts]) -> str:
    """Return the introduction: the compared runs, or the state of the run."""
    if len(runs) > 1:
        return f'<p class="lead">{len(runs)} runs side by side</p>'
    run = runs[0]
    when = f" · {clock(run.logbook.span[0])} to {clock(run.logbook.span[1])} UTC" if run.logbook else ""
    return f'<p class="lead"><span class="pill {run.status}">{run.status}</span>{when}</p>'


def headline(run: RunFacts) -> list[tuple[str, str]]:
    """Return the numbers one looks for first, each with its name."""
    last: Row = run.steps[-1] if run.steps else {}
    evaluated: Row = run.evals[-1] if run.evals else {}
    speeds = sorted(row["tokens_per_second"] for row in run.steps if row.get("tokens_per_second"))
    found = [
        ("step", figure(last.get("step", evaluated.get("step")))),
        ("tokens", format_count(last["tokens"]) if "tokens" in last else "–"),
        ("training loss", number(last.get("loss"))),
        ("validation loss", number(evaluated.get("loss"))),
        ("validation perplexity", number(evaluated.get("perplexity"))),
        ("median tokens/s", format_count(speeds[len(speeds) // 2]) if speeds else "–"),
    ]
    if run.logbook:
        account = run.logbook.account
        found += [
            ("goodput", f"{account.goodput:.1%}"),
            ("wall time", format_duration(account.wall)),
            ("attempts", figure(account.attempts)),
            ("lost steps", figure(account.lost_steps)),
        ]
    return found


def tiles(run: RunFacts) -> str:
    """Show the headline of one run."""
    shown = "".join(
        f'<div class="card tile"><small>{name}</small><strong>{value}</strong></div>'
        for name, value in headline(run)
    )
    return f'<div class="tiles">{shown}</div>'


def comparison(runs: Sequence[RunFacts]) -> str:
    """Show the headlines of several runs in one table."""
    names = list(dict.fromkeys(name for run in runs for name, _ in headline(run)))
    rows = []
    for index, run in enumerate(runs):
        values = dict(headline(run))
        name = f'<span class="dot"></span>{escape(run.name)}'
        first = f'<td class="name" style="--c:var(--c{index % 8})">{name}</td>'
        status = f'<td><span class="pill {run.status}">{run.status}</span></td>'
        rows.append(f"<tr>{first}{status}{cells([values.get(name, '–') for name in names], 'n')}</tr>")
    return f'<div class="card">{table(["run", "", *names], rows, numeric_from=2)}</div>'


def where_time_went(run: RunFacts) -> str:
    """Show the split of the wall time, and attempts and faults on the time axis."""
    if run.logbook is None:
        return (
            f'<div class="card"><h3>{escape(run.name)}</h3><p class="soft">This run kept no ledger.</p></div>'
        )
    account = run.logbook.account
    wall = account.wall or 1.0
    split = [(name, account.seconds[name]) for name in CATEGORIES if account.seconds[name] > 0]
    bar = "".join(
        f'<span style="width:{100 * seconds / wall:.3f}%;background:var(--{name})" '
        f'title="{name} {seconds / wall:.1%}"></span>'
        for name, seconds in split
    )
    legend = "".join(
        f'<li style="--c:var(--{name})"><span class="dot"></span><span>{name} '
        f'<span class="soft">{MEANING[name]}</span></span>'
        f"<b>{format_duration(seconds)} · {seconds / wall:.1%}</b></li>"
        for name, seconds in split
    )
    return (
        f'<div class="card"><h3>{escape(run.name)}: goodput {account.goodput:.1%} of '
        f"{format_duration(account.wall)}</h3>"
        f'<div class="bar" role="img" aria-label="split of the wall time">{bar}</div>'
        f'<ul class="legend">{legend}</ul>{_facts(run.logbook)}'
        f"{_lane(run, run.logbook)}{_timeline(run.logbook)}</div>"
    )


def _facts(logbook: Logbook) -> str:
    account, mttf = logbook.account, logbook.account.mttf_seconds
    restarts = ", ".join(f"{count} × {escape(cause)}" for cause, count in sorted(account.restarts.items()))
    samples = logbook.samples
    shown = [
        ("effective training time (ETTR)", f"{account.ettr:.1%}"),
        ("mean time to failure", format_duration(mttf) if mttf is not None else "no failure"),
        ("restarts", restarts or "none"),
        ("lost steps", str(account.lost_steps)),
    ]
    shown += [(f"samples {name}", format_count(samples[name])) for name in samples if name != "seen"]
    return f'<p class="facts">{"".join(f"<span>{name} <b>{value}</b></span> " for name, value in shown)}</p>'


def _lane(run: RunFacts, logbook: Logbook) -> str:
    begin, end = logbook.span
    length = max(end - begin, 1e-9)

    def at(moment: float) -> float:
        return 100 * min(1.0, max(0.0, (moment - begin) / length))

    def attempt(one: Try) -> str:
        kind = "" if one.ending in ("done", "stopped") else "failed"
        title = f"attempt {one.number}, {one.ending or 'ended without a word'}"
        width = max(at(one.end) - at(one.begin), 0.2)
        return (
            f'<span class="try {kind}" style="left:{at(one.begin):.3f}%;width:{width:.3f}%" title="{title}">'
            f"{one.number}</span>"
        )

    marks = "".join(
        f'<span class="mark" style="left:{at(event.time):.3f}%;--k:var({_EVENT_COLOUR[event.kind]})" '
        f'title="{event.kind.replace("_", " ")}"></span>'
        for event in run.events
        if event.kind in _EVENT_COLOUR
    )
    return (
        f'<h3>Attempts and faults</h3><div class="lane">{"".join(map(attempt, run.tries))}{marks}'
        f'<span class="at">{clock(begin)}</span>'
        f'<span class="at end">{format_duration(length)} later</span></div>'
    )


def _day_and_time(seconds: float) -> str:
    """Return a date and a time of day, which a line break may separate but not split."""
    return " ".join(f"<span>{part}</span>" for part in clock(seconds).split())


def _timeline(logbook: Logbook) -> str:
    rows = [
        f'<tr><td class="when">{_day_and_time(entry.time)}</td><td>{entry.attempt}</td>'
        f'<td class="words">{escape(entry.text)}</td></tr>'
        for entry in logbook.timeline
    ]
    opened = " open" if len(rows) <= _SHOWN_TIMELINE else ""
    shown = table(["UTC", "attempt", "what happened"], rows)
    return f"<details{opened}><summary>{len(rows)} events</summary>{shown}</details>"


def spikes(runs: Sequence[RunFacts]) -> str:
    """Show each skipped step with the text of its batch."""
    shown = "".join(_spike(run, spike, named=len(runs) > 1) for run in runs for spike in run.spikes)
    return f'<div class="card">{shown or "<p class=soft>No step was skipped.</p>"}</div>'


def _spike(run: RunFacts, spike: Spike, *, named: bool) -> str:
    of = f"{escape(run.name)}: " if named else ""
    ranks = f", not finite on rank {' and '.join(map(str, spike.ranks))}" if spike.ranks else ""
    return (
        f'<details class="spike"><summary>{of}step {spike.step} '
        f"<b>{escape(spike.reason.replace('_', ' '))}</b> "
        f'<span class="soft">loss {number(spike.loss)}, gradient norm {number(spike.grad_norm)}{ranks}, '
        f"attempt {spike.attempt}</span></summary><pre>{escape(spike.text) or 'no text'}</pre></details>"
    )


def evaluations(runs: Sequence[RunFacts]) -> str:
    """Show every evaluation, and highlight the one with the lowest loss."""
    cards = []
    for run in runs:
        if not run.evals:
            continue
        names = [name for name in run.evals[-1] if name not in ("kind", "attempt")]
        losses = [row["loss"] for row in run.evals if isinstance(row.get("loss"), float)]
        best = min(losses, default=None)
        rows = [
            f"<tr{' class=best' if best is not None and row.get('loss') == best else ''}>"
            f"{cells([figure(row.get(name)) for name in names], 'n')}</tr>"
            for row in run.evals
        ]
        heads = [name.replace("_", " ") for name in names]
        cards.append(
            f'<div class="card"><h3>{escape(run.name)}</h3>{table(heads, rows, numeric_from=0)}</div>'
        )
    return f'<div class="cols">{"".join(cards)}</div>' if cards else _nothing("No evaluation was made.")


def samples(runs: Sequence[RunFacts]) -> str:
    """Show what the models wrote, the newest first, the runs beside each other."""
    cards = []
    for run in runs:
        newest = list(reversed(run.samples))
        if newest:
            texts = "".join(map(_sample, newest[:_SHOWN_SAMPLES]))
            older = "".join(map(_sample, newest[_SHOWN_SAMPLES:]))
            more = f"<details><summary>earlier</summary>{older}</details>" if older else ""
            cards.append(f'<div class="card"><h3>{escape(run.name)}</h3>{texts}{more}</div>')
    return f'<div class="cols">{"".join(cards)}</div>' if cards else _nothing("No sample was drawn.")


def _sample(row: Row) -> str:
    prompt, text = escape(str(row.get("prompt", ""))), escape(str(row.get("text", "")))
    return f'<p class="soft">step {row.get("step")}</p><pre><em>{prompt}</em>{text}</pre>'


def differences(runs: Sequence[RunFacts]) -> str:
    """Show the keys whose values differ between the runs."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    rows = []
    for key in keys:
        values = [run.config.get(key, {}).get("value") for run in runs]
        if key != "name" and any(value != values[0] for value in values[1:]):
            shown = "".join(f"<td>{escape(figure(value))}</td>" for value in values)
            rows.append(f'<tr><td class="key-name">{escape(key)}</td>{shown}</tr>')
    if not rows:
        return _nothing("The configurations are equal.")
    heads = ["differs", *(run.name for run in runs)]
    return f'<div class="card" id="differences">{table(heads, rows)}</div>'


def configuration(run: RunFacts) -> str:
    """Show every key and derived number with where its value came from."""
    rows = [
        f'<tr title="{escape(str(entry.get("help", "")))}"><td class="key-name">{escape(key)}</td>'
        f"<td>{escape(figure(entry.get('value')))}</td>"
        f'<td class="soft">{escape(_origin(entry))}</td></tr>'
        for key, entry in run.config.items()
    ]
    found = table(["key", "value", "from"], rows)
    return (
        f'<div class="card"><details><summary>{escape(run.name)}: {len(rows)} values</summary>'
        f'<input type="search" placeholder="find a key" aria-label="find a key">{found}</details></div>'
    )


def _origin(entry: Mapping[str, Any]) -> str:
    kind, detail = entry.get("from", ""), entry.get("detail", "")
    return f"{kind}: {detail}" if kind in ("override", "derived") else str(detail)


def environments(runs: Sequence[RunFacts]) -> str:
    """Show the environment of each run's newest attempt, and the differences of earlier ones."""
    known = [run for run in runs if run.environments]
    if not known:
        return _nothing("These runs did not note their environment.")
    newest = [_flat(run.environments[max(run.environments, key=int)]) for run in known]
    keys = list(dict.fromkeys(key for one in newest for key in one))
    rows = [
        f'<tr><td class="key-name">{escape(key)}</td>'
        f"{''.join(f'<td>{escape(_environment(key, one.get(key)))}</td>' for one in newest)}</tr>"
        for key in keys
    ]
    changed = "".join(map(_changes, known))
    return f'<div class="card">{table(["", *(run.name for run in known)], rows)}{changed}</div>'


def _changes(run: RunFacts) -> str:
    numbers = sorted(run.environments, key=int)
    flat = [_flat(run.environments[number]) for number in numbers]
    lines = [
        f"{run.name}: {key} was {old.get(key)} before attempt {attempt}, now {new.get(key)}"
        for attempt, old, new in zip(numbers[1:], flat, flat[1:], strict=False)
        for key in new
        if old.get(key) != new.get(key)
    ]
    return "".join(f'<p class="soft">{escape(line)}</p>' for line in lines)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= value if isinstance(value, Mapping) else {key: value}
    return found


def _environment(key: str, value: Any) -> str:
    return format_bytes(value) if key.endswith("_bytes") and value else figure(value)


def _nothing(text: str) -> str:
    return f'<div class="card"><p class="soft">{text}</p></div>'
