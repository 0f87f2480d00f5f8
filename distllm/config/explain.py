"""Where a value came from: the file, group or override that set it, or how it was derived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distllm.config.compose import Composition, sources_of
from distllm.config.keys import flatten, leaves
from distllm.config.resolve import Derivation, Resolved
from distllm.config.schema import Config
from distllm.config.validate import describe
from distllm.errors import ConfigError, IntegrityError
from distllm.fsio import read_json
from distllm.registry import did_you_mean

EXPLANATION_FILE = "explain.json"
"""In a run directory: what `explanation` returned when it was last started."""
_ENTRY = frozenset(("value", "from", "detail", "help"))


def explanation(composition: Composition, resolved: Resolved | None) -> dict[str, dict[str, Any]]:
    """Return, for every key and derived quantity, its value, its origin and its help.

    Without ``resolved`` nothing is derived: the keys make no run.
    """
    tree = asdict(composition.config)
    values = flatten(tree)
    sources = sources_of(composition)
    table: dict[str, dict[str, Any]] = {}
    config = composition.config if resolved is None else resolved.config
    settled = flatten(asdict(config))
    for leaf in leaves(Config, tree):
        source, path = sources[leaf.path], leaf.path
        folder = _folder(path, config) if settled[path] != values[path] else None
        table[path] = {
            "value": settled[path] if folder else values[path],
            "from": "file" if folder else source.kind,
            "detail": folder or source.detail,
            "help": describe(leaf.field),
        }
    for name, derivation in derived(resolved).items() if resolved is not None else ():
        table[name] = {
            "value": derivation.value,
            "from": "derived",
            "detail": derivation.formula,
            "help": "derived, not settable",
        }
    return table


def read_explanation(path: Path) -> dict[str, dict[str, Any]]:
    """Read the table that a run directory keeps.

    Raises:
        IntegrityError: the file is missing or damaged.
    """
    table = read_json(path)
    whole = all(isinstance(entry, dict) and entry.keys() >= _ENTRY for entry in table.values())
    if not whole or "world_size" not in table:
        raise IntegrityError(
            f"{path} is not what a run writes there",
            where=str(path),
            remedy="restore it from a copy, or resume the run, which writes it again",
        )
    return table


def _folder(path: str, config: Config) -> str | None:
    """Return the folder that determines a key of the model, and the key that names it; else None."""
    model, key = config.model, "model.init_from"
    folder = model.init_from
    if path.startswith("model.lora."):
        folder, key = model.lora.init_from, "model.lora.init_from"
    return f"{folder}, which {key} names" if folder and path.startswith("model.") else None


def derived(resolved: Resolved) -> Mapping[str, Derivation]:
    """Return every derived quantity, the DeepSpeed JSON's entries included."""
    entries = {
        f"deepspeed.{key}": Derivation(value, "config/engine.py, from the quantities above")
        for key, value in flatten(resolved.deepspeed).items()
    }
    return {**resolved.derivations, **entries}


def select(table: Mapping[str, dict[str, Any]], wanted: str) -> dict[str, dict[str, Any]]:
    """Return the entry ``wanted``, or all entries of the group ``wanted``.

    Raises:
        ConfigError: there is none; the message names the closest.
    """
    if wanted in table:
        return {wanted: table[wanted]}
    group = {key: entry for key, entry in table.items() if key.startswith(f"{wanted}.")}
    if not group:
        raise ConfigError(f"unknown key {wanted!r}", where=wanted, remedy=did_you_mean(wanted, table))
    return group


def render(table: Mapping[str, dict[str, Any]]) -> str:
    """Return the table as text: value, origin and, for a single entry, its help."""
    if len(table) == 1:
        ((key, entry),) = table.items()
        return f"{key} = {entry['value']!r}\n  from: {_origin(entry)}\n  what: {entry['help']}"
    width = max(map(len, table))
    return "\n".join(
        f"{key:<{width}} = {entry['value']!r:<24} {_origin(entry)}" for key, entry in table.items()
    )


def _origin(entry: Mapping[str, Any]) -> str:
    label = {"override": "override ", "derived": "derived: ", "file": "", "schema": ""}[entry["from"]]
    return f"{label}{entry['detail']}"
