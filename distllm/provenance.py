"""The machine, packages and revision of the code that a run used, for its record.

Versions are read from the metadata of installed packages, so that none has to be imported.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

import distllm
from distllm.fsio import digest_bytes

NAMED_PACKAGES = (
    "torch", "deepspeed", "transformers", "tokenizers", "numpy", "wandb", "hydra-core", "webdataset",
)  # fmt: skip
_GIT_SECONDS = 5.0


def environment() -> dict[str, Any]:
    """Return the facts as plain values; what is unknown is None.

    ``packages_digest`` is a digest over name and version of every installed package: two runs with
    the same one had the same environment, however it was installed.
    """
    installed = packages()
    return {
        "distllm": distllm.__version__,
        "revision": revision(),
        "packages": {name: installed[name] for name in NAMED_PACKAGES if name in installed},
        "packages_digest": digest_bytes("\n".join(f"{n}=={v}" for n, v in installed.items()).encode()),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "host": socket.gethostname(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def packages() -> dict[str, str]:
    """Return the version of every installed package by its name in lower case, sorted."""
    found = ((d.metadata["Name"], d.version) for d in importlib.metadata.distributions())
    return {name.lower(): version for name, version in sorted(found) if name}


def revision() -> str | None:
    """Return the git revision of the code, with ``+changes`` if files differ from it; None outside git.

    It is that of the checkout distllm is imported from, or else of the current directory.
    """
    for directory in (Path(distllm.__file__).parent.parent, Path.cwd()):
        if (directory / ".git").exists() and (head := _git(directory, "rev-parse", "HEAD")):
            changed = _git(directory, "status", "--porcelain", "--untracked-files=no")
            return head + ("+changes" if changed else "")
    return None


def _git(directory: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *words],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None) or platform.processor() or None
