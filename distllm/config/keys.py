"""The keys of a tree of dataclasses: their dotted paths, including those below names that the user chooses.

A field ``dict[str, X]`` maps names chosen by the user to values or to further groups of keys. Its keys are
written with `ANY` in place of the name: ``data.sources.*.weight`` stands for every
``data.sources.NAME.weight``.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field
from functools import cache
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from distllm.config.problems import Problems
from distllm.registry import did_you_mean, edit_distance, ending_with, suggest

ANY = "*"
TARGET = "_target_"
"""Hydra's key that names code to run, which is never allowed here."""
_SLIP = 2
_OF_SBATCH = "cluster.slurm."
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_NAME_RULE = "letters, digits, '-' and '_', not '-' first: it becomes the name of a directory"


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """One settable key: its dotted path, field and resolved annotation."""

    path: str
    field: Field[Any]
    annotation: Any

    @property
    def default(self) -> Any:
        """The default value."""
        factory = self.field.default_factory
        return self.field.default if factory is dataclasses.MISSING else factory()


@cache
def hints(cls: type) -> dict[str, Any]:
    """Return the resolved annotations of a dataclass."""
    return get_type_hints(cls)


def required(annotation: Any) -> Any:
    """Return ``X`` of an annotation ``X | None``, and any other as it is."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    (inner,) = (argument for argument in get_args(annotation) if argument is not type(None))
    return inner


def entry_type(annotation: Any) -> Any:
    """Return ``X`` of an annotation ``dict[str, X]``, else None."""
    annotation = required(annotation)
    return get_args(annotation)[1] if get_origin(annotation) is dict else None


def element_group(annotation: Any) -> type | None:
    """Return the dataclass ``X`` of an annotation ``tuple[X, ...]``, else None."""
    annotation = required(annotation)
    element = get_args(annotation)[0] if get_origin(annotation) is tuple else None
    return cast(type, element) if dataclasses.is_dataclass(element) else None


def leaves(cls: type, tree: Mapping[str, Any] | None = None, prefix: str = "") -> Iterator[Leaf]:
    """Yield every settable key of a dataclass tree, in declaration order.

    Args:
        cls: the dataclass.
        tree: nested values; mappings then yield the names that they have here, and an empty mapping is a key
            itself. Without it the names are `ANY`.
        prefix: prefix of the paths.
    """
    for item in dataclasses.fields(cls):
        below = None if tree is None else tree.get(item.name)
        yield from _leaves_at(f"{prefix}{item.name}", item, hints(cls)[item.name], tree is None, below)


def _leaves_at(path: str, item: Field[Any], annotation: Any, any_name: bool, below: Any) -> Iterator[Leaf]:
    values = below if isinstance(below, Mapping) else {}
    entry = entry_type(annotation)
    if dataclasses.is_dataclass(annotation):
        yield from leaves(cast(type, annotation), None if any_name else values, f"{path}.")
    elif entry is not None and (any_name or values):
        for name in [ANY] if any_name else values:
            yield from _leaves_at(f"{path}.{name}", item, entry, any_name, values.get(name))
    else:
        yield Leaf(path, item, annotation)


def keys(cls: type) -> tuple[str, ...]:
    """Return the dotted path of every settable key, with `ANY` for the names of a mapping."""
    return _keys(cls)


@cache
def _keys(cls: type) -> tuple[str, ...]:
    return tuple(leaf.path for leaf in leaves(cls))


@cache
def _named(paths: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern for those of ``paths`` that contain names."""
    written = (re.escape(path).replace(re.escape(ANY), r"[^.]+") for path in paths if ANY in path)
    return re.compile("|".join(written) or r"(?!)")


@cache
def _containers(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Return the prefixes that end before or at a name: ``a.*.b`` gives ``a`` and ``a.*``."""
    parts = [path.split(".") for path in paths if ANY in path]
    at = [(part, index) for part in parts for index, word in enumerate(part) if word == ANY]
    found = (".".join(part[:end]) for part, index in at for end in (index, index + 1))
    return tuple(dict.fromkeys(path for path in found if path not in paths))


def is_key(path: str, known: tuple[str, ...]) -> bool:
    """Whether ``path`` is one of the ``known`` keys."""
    return path in known or _named(known).fullmatch(path) is not None


def holds_keys(path: str, known: tuple[str, ...]) -> bool:
    """Whether ``path`` is a mapping of names, or one entry of it, which ``path={...}`` may set."""
    return path in _containers(known) or _named(_containers(known)).fullmatch(path) is not None


def is_name(text: object) -> bool:
    """Whether ``text`` can be a name in a mapping."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def note_wrong_name(name: object, path: str, problems: Problems) -> None:
    """Note that ``name``, the last part of ``path``, cannot be a name in a mapping."""
    if not isinstance(name, str):
        problems.add(
            f"{path}: YAML reads the name as {name!r}, which is not text",
            where=path,
            remedy=f"put it in quotes, as in '{name}', or choose a name with a letter in it",
        )
        return
    problems.add(f"{name!r} cannot be a name in a mapping", where=path, remedy=f"use {_NAME_RULE}")


def wrong_names(path: str, known: tuple[str, ...]) -> list[str]:
    """Return the paths up to each part of ``path`` that stands for a name and cannot be one."""
    parts = path.split(".")
    patterns = (pattern.split(".") for pattern in (*known, *_containers(known)) if ANY in pattern)
    fitting = [
        pattern
        for pattern in patterns
        if len(pattern) == len(parts) and all(map(lambda word, part: word in (ANY, part), pattern, parts))
    ]
    return list(
        dict.fromkeys(
            ".".join(parts[: index + 1])
            for pattern in fitting
            for index, word in enumerate(pattern)
            if word == ANY and not is_name(parts[index])
        )
    )


def note_unknown_key(path: str, known: Iterable[str], problems: Problems) -> None:
    """Note that ``path`` is not a key, with the closest key."""
    if path.rsplit(".", 1)[-1] == TARGET:
        problems.add(
            f"{TARGET} would run code named by a configuration",
            where=path,
            remedy="choose an implementation by name, such as optim.name=adamw",
        )
        return
    known = tuple(known)
    candidates = {_spelled(key, path): key for key in known}
    meant = suggest(path, candidates)
    if meant is not None and _like_by_name_alone(path, meant, candidates[meant]):
        alike = [word for word, key in candidates.items() if not _like_by_name_alone(path, word, key)]
        meant = suggest(path, alike)
    if meant is not None and holds_keys(path, known) and edit_distance(path, meant) > _SLIP:
        meant = None  # a name without a key after it is more likely than so many typos
    if path.startswith(_OF_SBATCH) and (meant is None or edit_distance(path, meant) > _SLIP):
        option = path.removeprefix(_OF_SBATCH).replace("_", "-")
        remedy = f"an option of sbatch is given as cluster.slurm.options=['--{option}=...']"
        problems.add(f"unknown key {path!r}", where=path, remedy=remedy)
        return
    found = ending_with(path, candidates)
    if len(found) == 1:
        meant = found[0]
    near = [meant] if meant is not None else found or _nearest_group(path, candidates)
    problems.add(f"unknown key {path!r}", where=path, remedy=did_you_mean(path, near))
    if meant is not None:
        problems.suspects.add(meant)


def _like_by_name_alone(path: str, word: str, key: str) -> bool:
    """Whether ``word`` is like ``path`` only by the typed name in it: cluster.env.x like cluster.slurm.x."""
    return ANY in key and edit_distance(path, word) > max(1, len(key.replace(ANY, "")) // 3)


def _nearest_group(path: str, candidates: Iterable[str]) -> list[str]:
    """Return the keys below ``path``, or below the closest group around it; at the top, the groups."""
    candidates, group = list(candidates), path
    while group:
        if found := [key for key in candidates if key.startswith(f"{group}.")]:
            return found
        group = group.rpartition(".")[0]
    return sorted({key.partition(".")[0] for key in candidates})


def _spelled(key: str, typed: str) -> str:
    """Return ``key`` with the name that ``typed`` has where the key has `ANY`.

    A typo before or after the name moves it by a letter or two; of the readings that are equally
    close the one with the longest name is what was meant.
    """
    before, star, after = key.partition(ANY)
    if not star:
        return key
    words, there = key.split("."), typed.split(".") if typed.startswith(before) else []
    names = [name if is_name(name) else "NAME" for name in there] + ["NAME"] * len(words)
    aligned = ".".join(name if word == ANY else word for word, name in zip(words, names, strict=False))
    # In place, or too far away for `suggest` to take any reading; of two names only the place decides.
    missing = (Counter(before + after) - Counter(typed)).total()
    if ANY in after or len(there) == len(words) or missing > max(1, len(typed) // 3):
        return aligned
    ends = range(len(typed) - len(after) - 2, len(typed) - len(after) + 3)
    starts = range(len(before) - 2, len(before) + 3)
    spans = {typed[start : max(start, end)] for start in starts for end in ends}
    readings = sorted(f"{before}{name}{after}" for name in spans if is_name(name))
    closest = suggest(typed, readings)
    if closest is None:
        return aligned
    distance = edit_distance(typed, closest)
    return max((word for word in readings if edit_distance(typed, word) == distance), key=len)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a nested mapping under dotted paths; an empty mapping is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nested(key: str, value: Any) -> dict[str, Any]:
    """Return ``value`` inside the mappings that the dotted path ``key`` names."""
    head, _, rest = key.partition(".")
    return {head: nested(rest, value) if rest else value}


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge one nested mapping over another: mappings are merged, other values replaced."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old or {}, value) if both else value
    return result
