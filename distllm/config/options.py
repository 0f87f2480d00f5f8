"""How one key of the configuration is declared: default, help, unit, range and resume class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any, Literal

OnResume = Literal["identity", "schedule", "cosmetic"]
Unit = Literal["count", "bytes"]


def option(
    default: Any,
    help_text: str,
    *,
    factory: Callable[[], Any] | None = None,
    unit: Unit | None = None,
    on_resume: OnResume = "cosmetic",
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """Declare one key: default, one-line help, unit, range (inclusive) and resume class.

    ``factory`` makes the default of a key whose values are mappings; ``default`` is then ignored.
    """
    metadata = {
        "help": help_text,
        "unit": unit,
        "on_resume": on_resume,
        "minimum": minimum,
        "maximum": maximum,
    }
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)
