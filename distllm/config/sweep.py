"""A sweep of Weights & Biases, generated from the schema: what to vary, within what the schema allows.

``key=a,b,c`` are values, ``key=low..high`` a range, ``key=*`` every choice the schema knows for the key.
A range of a positive number that spans a factor of ten or more is searched by its logarithm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from distllm.config.compose import compose
from distllm.config.keys import leaves, required
from distllm.config.overrides import split_override
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.validate import coerce, describe, parse_literal
from distllm.units import parse_count

Method = Literal["grid", "random", "bayes"]
_RANGE = re.compile(r"(?P<low>[^.\[{'\"]+(?:\.\d+)?[^.]*?)\.\.(?P<high>.+)")
_LOGARITHMIC_FROM = 10.0
TRIAL_NAME = "${oc.env:WANDB_RUN_ID}"
"""The trial itself reads it: the agent's own macro is replaced before the trial's id is known."""


def sweep(
    words: Sequence[str], *, method: Method, metric: str, goal: Literal["minimize", "maximize"]
) -> dict[str, Any]:
    """Return the sweep as what its YAML file holds.

    Args:
        words: overrides; ranges, lists and ``*`` are varied.
        method: how the next trial is chosen.
        metric: the metric to optimise, by its name in Weights & Biases; empty: the task's validation loss.
        goal: whether lower or higher values are better.

    Raises:
        ConfigProblems: nothing is varied, a key is unknown, or a value or bound is not allowed.
    """
    problems = Problems()
    fixed: list[str] = []
    varied: dict[str, dict[str, Any]] = {}
    for word in words:
        _, key, value = split_override(word)
        spec = _variation(key, value or "", problems)
        if spec is None:
            fixed.append(word)
        else:
            varied[key] = spec
    if not varied:
        problems.add(
            "nothing is to be varied",
            where="command line",
            remedy="give key=a,b,c or key=low..high or key=*, such as optim.lr=1e-4..1e-2",
        )
    if method == "grid" and (ranges := [key for key, spec in varied.items() if "values" not in spec]):
        problems.add(
            f"a grid has no step for the range of {', '.join(ranges)}",
            where="sweep.method",
            remedy="list values (key=a,b,c), or sweep.method=bayes",
        )
    problems.raise_if_any()
    corners = [[f"{key}={end}" for key, end in zip(varied, ends, strict=True)] for ends in _ends(varied)]
    configs = [compose([*fixed, *corner]) for corner in corners]
    base = configs[0]
    return {
        "name": base.name,
        "project": base.logger.project,
        "program": "distllm",
        "method": method,
        "metric": {"name": metric or f"eval/{base.task.name}/loss", "goal": goal},
        "parameters": varied,
        "command": [
            "distllm", "train", *fixed, "logger.wandb=online", f"name={base.name}-{TRIAL_NAME}",
            "${args_no_hyphens}",
        ],
    }  # fmt: skip


def _ends(varied: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    """Return the two corners of the space: every first value or lower bound, every last or upper one."""
    first = [spec["values"][0] if "values" in spec else spec["min"] for spec in varied.values()]
    last = [spec["values"][-1] if "values" in spec else spec["max"] for spec in varied.values()]
    return [first, last]


def _variation(key: str, value: str, problems: Problems) -> dict[str, Any] | None:
    """Return how a key varies, or None if it has one value."""
    leaf = next((leaf for leaf in leaves(Config) if leaf.path == key), None)
    kind = required(leaf.annotation) if leaf else None
    if value == "*":
        choices = get_args(kind) if get_origin(kind) is Literal else (True, False) if kind is bool else ()
        if not choices:
            help_text = describe(leaf.field) if leaf else "no such key"
            problems.add(
                f"{key}=*: the schema lists no choices", where=key, remedy=f"list values; {help_text}"
            )
        return {"values": list(choices)}
    found = _RANGE.fullmatch(value)
    if found and leaf and kind in (int, float):
        return _range(key, found["low"], found["high"], leaf, problems)
    if "," in value and value[0] not in "[{'\"":
        parts = [part.strip() for part in value.split(",")]
        return {"values": [_value(part, leaf, problems) if leaf else parse_literal(part) for part in parts]}
    return None


def _range(key: str, low: str, high: str, leaf: Any, problems: Problems) -> dict[str, Any]:
    bounds = [_value(text, leaf, problems) for text in (low, high)]
    if None in bounds or not bounds[0] < bounds[1]:
        problems.add(
            f"{key}={low}..{high} is not a range",
            where=key,
            remedy=f"write low..high; {describe(leaf.field)}",
        )
        return {"min": low, "max": high}
    if required(leaf.annotation) is int:
        kind = "q_log_uniform_values" if _is_wide(*bounds) else "int_uniform"
        return {"distribution": kind, "min": bounds[0], "max": bounds[1]}
    kind = "log_uniform_values" if _is_wide(*bounds) else "uniform"
    return {"distribution": kind, "min": bounds[0], "max": bounds[1]}


def _is_wide(low: float, high: float) -> bool:
    return low > 0 and high / low >= _LOGARITHMIC_FROM


def _value(text: str, leaf: Any, problems: Problems) -> Any:
    literal = parse_literal(text)
    try:
        if required(leaf.annotation) is int and isinstance(literal, str):
            literal = parse_count(literal)
        return coerce(literal, leaf.annotation, leaf.field)
    except ValueError as error:
        problems.add(f"{leaf.path}={text!r}: {error}", where=leaf.path, remedy=describe(leaf.field))
        return None
