"""How long steps and saves take, measured in a run directory or planned, against the limits of a job."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distllm.cluster.limits import CLOCK_SECONDS, check_interval, check_warning, time_limit
from distllm.config.problems import Problems
from distllm.config.resolve import Resolved
from distllm.errors import DataError
from distllm.fsio import read_tail
from distllm.observe.ledger import LEDGER_FILE, number_in, read_events
from distllm.observe.sinks import METRICS_FILE
from distllm.units import count_of, format_duration

_MEASURED_STEPS = 50
_TAIL_BYTES = 1 << 20


def check_time(resolved: Resolved, run_dir: Path, problems: Problems) -> list[str]:
    """Compare the time of a checkpoint interval, and of the whole run, with the limit of one start."""
    seconds, origin = _seconds_per_step(run_dir), "measured in this run directory"
    if seconds is None:
        seconds, origin = _predicted_seconds(resolved), "predicted by the planner"
    limit = time_limit(resolved.config, Problems())
    if seconds is None:
        return ["the time of a step is unknown: nothing was measured here, the profile states no hardware"]
    check_interval(resolved.config, seconds, origin, problems)
    check_warning(resolved.config, seconds, _save_seconds(resolved, run_dir), origin, problems)
    needed = seconds * resolved.max_steps
    note = (
        f"{format_duration(needed)} for {count_of(resolved.max_steps, 'step')} of {seconds:.3g} s, {origin}"
    )
    if limit is None:
        return [note]
    usable = max(1, limit - resolved.config.cluster.slurm.warning_seconds - CLOCK_SECONDS)
    starts = count_of(max(1, -(-int(needed) // usable)), "start")
    return [f"{note}: about {starts} under this time limit"]


def _predicted_seconds(resolved: Resolved) -> float | None:
    """Return the planner's time of a step, where the cluster's profile states its hardware."""
    from distllm.plan.estimate import estimate
    from distllm.plan.experiment import layout_of
    from distllm.plan.profile import machine_of_config, missing_figures
    from distllm.plan.work import work_of

    config = resolved.config
    if config.cluster.device != "cuda" or missing_figures(config.cluster.hardware):
        return None
    machine = machine_of_config(config)
    return estimate(
        work_of(resolved.shape, resolved.trainable_params), layout_of(resolved), config, machine
    ).time.total


def _save_seconds(resolved: Resolved, run_dir: Path) -> float:
    """Return the seconds for one checkpoint: by the cluster's profile, or as measured if that is longer."""
    from distllm.plan.estimate import CHECKPOINT_BYTES

    store = resolved.config.cluster.hardware.store_gb_per_s * 1e9
    return max(resolved.shape.num_params * CHECKPOINT_BYTES / store, _measured_save(run_dir))


def _measured_save(run_dir: Path) -> float:
    """Return the mean seconds for which a save has blocked training; 0 if none was measured."""
    try:
        events = read_events(run_dir / LEDGER_FILE)
    except DataError:
        return 0.0
    saves = sum(event.kind == "saved" for event in events)
    spent = (event.fields.get("seconds") for event in events if event.kind == "progress")
    seconds = sum(number_in(one, "checkpoint") for one in spent if isinstance(one, Mapping))
    return seconds / saves if saves else 0.0


def _seconds_per_step(run_dir: Path) -> float | None:
    """Return the median time of the last steps that this run has recorded; None if there are none."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return None
    times: list[float] = []
    before: tuple[int, float] | None = None
    for text in read_tail(path, _TAIL_BYTES).splitlines()[-4 * _MEASURED_STEPS :]:
        try:
            line: Mapping[str, Any] = json.loads(text)
        except ValueError:
            continue
        if line.get("kind") != "step" or "time" not in line:
            before = None
            continue
        if before is not None and line["step"] > before[0]:
            times.append((line["time"] - before[1]) / (line["step"] - before[0]))
        before = (line["step"], line["time"])
    return statistics.median(times[-_MEASURED_STEPS:]) if times else None
