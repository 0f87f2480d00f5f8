"""The names of all measures in Weights & Biases, TensorBoard, MLflow and trackio.

Axes are ``trainer/step`` and ``trainer/tokens``. Namespaces: ``train/`` the objective, ``eval/<task>/``
evaluations, ``perf/`` speed, ``sys/`` the machine, ``data/`` reading, ``reliability/`` failures, ``privacy/``
privacy loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from distllm.observe.goodput import Account
from distllm.observe.metrics import EvalRecord, StepRecord

STEP_AXIS = "trainer/step"
TOKEN_AXIS = "trainer/tokens"
SAMPLES = "eval/samples"
SAMPLE_COLUMNS = ("step", "tokens", "prompt", "text")

_STEP_NAMES = {
    "loss": "train/loss",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "perf/tokens_per_second",
    "mfu": "perf/mfu",
    "overhead_fraction": "perf/overhead_fraction",
    "eta_seconds": "perf/eta_seconds",
    "data_wait_fraction": "data/wait_fraction",
    "damaged_samples": "data/damaged_samples",
    "memory_bytes": "sys/memory_bytes",
    "attempt": "reliability/attempt",
    "skipped_steps": "reliability/skipped_steps",
    "rewinds": "reliability/rewinds",
    "epsilon": "privacy/epsilon",
    "epsilon_poisson": "privacy/epsilon_poisson",
}
_MOST_NATS = 700.0  # above this the perplexity overflows a double


def definitions(task: str) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield (name or pattern, its axis, which value the summary keeps) for everything that is logged."""
    yield STEP_AXIS, None, None
    yield TOKEN_AXIS, None, None
    yield "train/*", TOKEN_AXIS, None
    yield f"eval/{task}/*", TOKEN_AXIS, None
    yield f"eval/{task}/loss", TOKEN_AXIS, "min"
    yield SAMPLES, TOKEN_AXIS, None
    for namespace in ("perf", "sys", "data", "reliability", "privacy"):
        yield f"{namespace}/*", STEP_AXIS, None
    yield "perf/tokens_per_second", STEP_AXIS, "mean"
    yield "perf/mfu", STEP_AXIS, "max"


def step_values(record: StepRecord) -> dict[str, float]:
    """Return the values of a step; unknown ones are left out."""
    fields = asdict(record)
    values = {name: fields[key] for key, name in _STEP_NAMES.items() if fields.get(key) is not None}
    if record.loss < _MOST_NATS:
        values["train/perplexity"] = math.exp(record.loss)
    return values


def eval_values(record: EvalRecord, task: str) -> dict[str, float]:
    """Return every measure of an evaluation; those in mappings are named by the path of their keys."""
    measures = {key: value for key, value in asdict(record).items() if key not in ("step", "tokens")}
    return dict(_flat(measures, f"eval/{task}"))


def reliability_values(account: Account) -> dict[str, float]:
    """Return goodput and related measures of the run so far."""
    values = {
        "goodput": account.goodput,
        "ettr": account.ettr,
        "lost_steps": account.lost_steps,
        "restarts": sum(account.restarts.values()),
    }
    if (mttf := account.mttf_seconds) is not None:
        values["mttf_seconds"] = mttf
    return {f"reliability/{key}": value for key, value in values.items()}


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}/{key}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}/{key}", value
