"""The sources of a preparation, each with how it is read and cleaned, and their parts in order."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from distllm.config.schema import Config
from distllm.config.schema_clean import CleanConfig
from distllm.config.schema_read import ReadConfig
from distllm.data.clean import load_profile
from distllm.data.read import FIELDS, Part, find_parts
from distllm.data.records import Dropped

_UNIT_BYTES = 16 * 2**20
_UNIT_PARTS = 1024
_MANY = "many"
_NOT_CONTENT = ("paths", "stall_seconds")


@dataclass(frozen=True, slots=True)
class Source:
    """One named source: how it is read and cleaned, and its rank among equal documents."""

    name: str
    read: ReadConfig
    clean: CleanConfig
    priority: int

    def reading(self) -> dict[str, Any]:
        """Return the keys that say how a part is read, as JSON values."""
        return {key: value for key, value in asdict(self.read).items() if key not in _NOT_CONTENT}

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of its documents."""
        return FIELDS[self.read.source]


@dataclass(frozen=True, slots=True)
class Unit:
    """The input of one task: neighbouring parts of a source, about 16 MiB together."""

    source: Source
    parts: tuple[Part, ...]
    size: int


def settle_sources(config: Config) -> list[Source]:
    """Return the sources of ``config`` in order of their names."""
    if config.data.source != _MANY:
        return [Source(config.data.source, _read_config(config.data), config.clean, 0)]
    return [
        Source(
            name,
            _read_config(source),
            load_profile(source.clean) if source.clean else config.clean,
            source.priority,
        )
        for name, source in sorted(config.data.sources.items())
    ]


def _read_config(config: ReadConfig) -> ReadConfig:
    return ReadConfig(**{item.name: getattr(config, item.name) for item in fields(ReadConfig)})


def find_units(source: Source) -> tuple[list[Unit], list[Dropped]]:
    """Return the units of ``source`` in canonical order, and what was passed over.

    Raises:
        DataError: the source names nothing that can be read.
    """
    parts, dropped = find_parts(source.name, source.read, part_bytes=_UNIT_BYTES)
    units: list[Unit] = []
    waiting: list[Part] = []
    size = 0
    for part in parts:
        if waiting and (size + part.size > _UNIT_BYTES or len(waiting) == _UNIT_PARTS):
            units.append(Unit(source, tuple(waiting), size))
            waiting, size = [], 0
        waiting.append(part)
        size += part.size
    if waiting:
        units.append(Unit(source, tuple(waiting), size))
    return units, dropped
