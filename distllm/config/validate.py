"""From a nested mapping to a frozen dataclass tree, noting every unknown key and wrong value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import Field
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

from distllm.config.keys import (
    TARGET,
    element_group,
    entry_type,
    hints,
    is_name,
    keys,
    note_unknown_key,
    note_wrong_name,
    required,
)
from distllm.config.problems import Problems
from distllm.registry import did_you_mean
from distllm.units import parse_bytes, parse_count

T = TypeVar("T")
_LITERALS: dict[str, Any] = {"true": True, "false": False, "null": None}
_WRONG = object()
_PARSE_UNIT = {"count": parse_count, "bytes": parse_bytes}


def parse_literal(text: str) -> Any:
    """Parse a word of the command line: true, false, null, a number, or else text."""
    if text in _LITERALS:
        return _LITERALS[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def build(cls: type[T], raw: Mapping[str, Any], problems: Problems) -> T:
    """Build ``cls`` from ``raw``, noting every unknown key and wrong value in ``problems``.

    Keys absent from ``raw`` take their defaults. So do keys with a wrong value, which become suspects: the
    result can be used to look for more problems, and is valid only if there are none.
    """
    return cast(T, _Builder(keys(cls), problems).group(cls, raw, ""))


class _Builder:
    """Builds dataclasses from mappings, and knows the path of every value."""

    def __init__(self, known: tuple[str, ...], problems: Problems) -> None:
        self._known = known
        self._problems = problems

    def group(self, cls: type, raw: Mapping[Any, Any], path: str) -> Any:
        """Build the dataclass ``cls`` from the mapping ``raw`` found at ``path``."""
        fields = {item.name: item for item in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for key, value in raw.items():
            below = f"{path}.{key}" if path else str(key)
            if key not in fields:
                inside_list = [f"{path}.{name}" for name in fields] if "[" in path else self._known
                note_unknown_key(below, inside_list, self._problems)
                continue
            built = self._value(value, hints(cls)[key], fields[key], below)
            if built is not _WRONG:
                values[key] = built
        return cls(**values)

    def _value(self, value: Any, annotation: Any, item: Field[Any], path: str) -> Any:
        """Build what a field or an entry of a mapping holds; `_WRONG` after noting a problem."""
        if value is None and required(annotation) is not annotation:
            return None
        if dataclasses.is_dataclass(inner := required(annotation)):
            return self._group_or_wrong(cast(type, inner), value, path)
        if (entry := entry_type(annotation)) is not None:
            return self._mapping(value, entry, item, path)
        if (element := element_group(annotation)) is not None:
            return self._list(value, element, item, path)
        try:
            return coerce(value, annotation, item)
        except ValueError as error:
            return self._wrong_value(value, error, item, path)

    def _group_or_wrong(self, cls: type, value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            return self.group(cls, value, path)
        example = f"{path}.{dataclasses.fields(cls)[0].name}"
        self._problems.add(
            f"{path} is a group of keys, not a value: {value!r}",
            where=path,
            remedy=f"set a key inside it, such as {example}",
        )
        return _WRONG

    def _mapping(self, value: Any, entry: Any, item: Field[Any], path: str) -> Any:
        if not isinstance(value, Mapping):
            return self._wrong_value(value, "expected a mapping, such as {NAME: ...}", item, path)
        built: dict[str, Any] = {}
        for name, below in value.items():
            if name == TARGET:
                note_unknown_key(f"{path}.{name}", self._known, self._problems)
            elif not is_name(name):
                note_wrong_name(name, f"{path}.{name}", self._problems)
            elif (made := self._value(below, entry, item, f"{path}.{name}")) is not _WRONG:
                built[name] = made
        return built

    def _list(self, value: Any, element: type, item: Field[Any], path: str) -> Any:
        if not isinstance(value, (list, tuple)):
            first = dataclasses.fields(element)[0].name
            return self._wrong_value(
                value, f"expected a list of mappings, such as [{{{first}: ...}}]", item, path
            )
        made = [self._group_or_wrong(element, part, f"{path}[{index}]") for index, part in enumerate(value)]
        return tuple(part for part in made if part is not _WRONG)

    def _wrong_value(self, value: Any, reason: object, item: Field[Any], path: str) -> Any:
        self._problems.add(f"{path}={value!r}: {reason}", where=path, remedy=describe(item))
        self._problems.suspects.add(path)
        return _WRONG


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
    if value is None and required(annotation) is not annotation:
        return None
    annotation = required(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        if value not in arguments:
            words = [str(each).lower() if isinstance(each, bool) else str(each) for each in arguments]
            raise ValueError(f"not one of {', '.join(words)}; {did_you_mean(str(value), words)}")
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
