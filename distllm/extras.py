"""Optional packages: imported on use, with an error that says how to install a missing one."""

from __future__ import annotations

import importlib
from types import ModuleType

from distllm.errors import MissingDependency


def require(module: str, purpose: str, extra: str = "data") -> ModuleType:
    """Import ``module``, which belongs to an extra.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise MissingDependency(
            f"{purpose} needs the package {error.name}, which is not installed",
            where=module,
            remedy=f"pip install 'distllm[{extra}]'",
        ) from error
