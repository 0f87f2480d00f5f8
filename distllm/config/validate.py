"""From a nested mapping to a frozen dataclass tree, noting every unknown key and wrong value."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import Field
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from distllm.config.problems import Problems
from distllm.registry import did_you_mean, suggest
from distllm.units import parse_bytes, parse_count

T = TypeVar("T")
_LITERALS: dict[str, Any] = {"true": True, "false": False, "null": None}
_PARSE_UNIT = {"count": parse_count, "bytes": parse_bytes}


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """One settable key: its dotted path, field and resolved annotation."""

    path: str
    field: Field[Any]
    annotation: Any


@cache
def hints(cls: type) -> dict[str, Any]:
    """Return the resolved annotations of a dataclass."""
    return get_type_hints(cls)


def leaves(cls: type, prefix: str = "") -> Iterator[Leaf]:
    """Yield every settable key of a dataclass tree, in declaration order."""
    for item in dataclasses.fields(cls):
        annotation = hints(cls)[item.name]
        path = f"{prefix}{item.name}"
        if dataclasses.is_dataclass(annotation):
            yield from leaves(cast(type, annotation), f"{path}.")
        else:
            yield Leaf(path, item, annotation)


def keys(cls: type) -> list[str]:
    """Return the dotted paths of every settable key."""
    return [leaf.path for leaf in leaves(cls)]


def parse_literal(text: str) -> Any:
    """Return a word of the command line as true, false, null, a number or, else, text."""
    if text in _LITERALS:
        return _LITERALS[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a nested mapping under dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def build(cls: type[T], raw: Mapping[str, Any], problems: Problems) -> T:
    """Build ``cls`` from ``raw``, noting every unknown key and wrong value in ``problems``.

    Keys absent from ``raw`` take their defaults. So do keys with a wrong value, which become
    suspects: the result serves to look for more problems and is good only when there are none.
    """
    return cast(T, _build(cls, raw, "", keys(cls), problems))


def _build(cls: type, raw: Mapping[str, Any], prefix: str, known: list[str], problems: Problems) -> Any:
    values: dict[str, Any] = {}
    fields = {item.name: item for item in dataclasses.fields(cls)}
    for key, value in raw.items():
        path = f"{prefix}{key}"
        if key not in fields:
            note_unknown_key(path, known, problems)
            continue
        annotation = hints(cls)[key]
        if not dataclasses.is_dataclass(annotation):
            try:
                values[key] = coerce(value, annotation, fields[key])
            except ValueError as error:
                problems.add(f"{path}={value!r}: {error}", where=path, remedy=describe(fields[key]))
                problems.suspects.add(path)
        elif isinstance(value, Mapping):
            values[key] = _build(cast(type, annotation), value, f"{path}.", known, problems)
        else:
            example = f"{path}.{dataclasses.fields(annotation)[0].name}"
            problems.add(
                f"{path} is a group of keys, not a value: {value!r}",
                where=path,
                remedy=f"set a key inside it, such as {example}",
            )
    return cls(**values)


def note_unknown_key(path: str, known: list[str], problems: Problems) -> None:
    """Note that ``path`` is no key, with the closest one that is."""
    if path.rsplit(".", 1)[-1] == "_target_":
        problems.add(
            "_target_ would run code named by a configuration",
            where=path,
            remedy="choose an implementation by its name, such as optim.name=adamw",
        )
        return
    problems.add(f"unknown key {path!r}", where=path, remedy=did_you_mean(path, known))
    if (meant := suggest(path, known)) is not None:
        problems.suspects.add(meant)


def describe(item: Field[Any]) -> str:
    """Return the help text and allowed range of a field."""
    low, high = item.metadata.get("minimum"), item.metadata.get("maximum")
    bounds = [f"at least {low}" if low is not None else "", f"at most {high}" if high is not None else ""]
    limits = ", ".join(bound for bound in bounds if bound)
    return f"{item.metadata['help']}{f' ({limits})' if limits else ''}"


def coerce(value: Any, annotation: Any, item: Field[Any]) -> Any:
    """Return ``value`` as the type of its field.

    Raises:
        ValueError: it is of another type, outside its range, or not one of the choices.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (annotation,) = (argument for argument in arguments if argument is not type(None))
        return coerce(value, annotation, item)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(
                f"not one of {', '.join(map(str, arguments))}; {did_you_mean(str(value), arguments)}"
            )
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError("expected a list, such as [a,b]")
        return tuple(coerce(element, arguments[0], item) for element in value)
    return _within_range(_scalar(value, annotation, item), item)


def _scalar(value: Any, annotation: type, item: Field[Any]) -> Any:
    if annotation is str:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        raise ValueError("expected text")
    if annotation is bool:
        if isinstance(value, bool):
            return value
        raise ValueError("expected true or false")
    if isinstance(value, bool) or value is None:
        raise ValueError("expected a number")
    if annotation is int:
        return _integer(value, item.metadata.get("unit"))
    try:
        return float(value)  # YAML reads 1e-4 as text
    except (TypeError, ValueError, OverflowError):
        raise ValueError("expected a number") from None


def _integer(value: Any, unit: str | None) -> int:
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and unit is not None:
        return _PARSE_UNIT[unit](value)
    raise ValueError("expected a whole number")


def _within_range(value: Any, item: Field[Any]) -> Any:
    low, high = item.metadata.get("minimum"), item.metadata.get("maximum")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"not a finite number ({value})")
    if low is not None and value < low:
        raise ValueError(f"below the least allowed value {low}")
    if high is not None and value > high:
        raise ValueError(f"above the greatest allowed value {high}")
    return value
