"""The cores, memory and file systems that this process may use."""

from __future__ import annotations

import ctypes
import functools
import operator
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_CGROUPS = Path("/sys/fs/cgroup")
_CGROUP_CPU = _CGROUPS / "cpu.max"
_OWN_CGROUP = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")
_MOUNTS = Path("/proc/mounts")
_STATUS = Path("/proc/self/status")
_BINDING = re.compile(r"(?P<kind>mask|map)_cpu:(?P<parts>(?:0x)?[0-9a-fA-F]+(?:,(?:0x)?[0-9a-fA-F]+)*)")
_CGROUP_MEMORY = _CGROUPS / "memory.max"


def is_alive(pid: int) -> bool:
    """Whether a process with this id exists on this machine, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send this process a signal when its parent ends, for whatever reason."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def available_cores() -> int:
    """Return the CPU cores this process may use: its affinity mask, cut by a cgroup quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP_CPU.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def cores_of_ranks(env: Mapping[str, str] = os.environ) -> int:
    """Return the CPU cores that the ranks on this machine have together.

    If SLURM binds each rank to its own cores, this process may use only its share; ``SLURM_CPU_BIND`` has the
    masks of all ranks of the machine.
    """
    own, bound = available_cores(), _BINDING.search(env.get("SLURM_CPU_BIND", ""))
    if "SLURM_STEP_ID" not in env or bound is None:
        return own
    parts = [part for part in bound["parts"].split(",") if part]
    if bound["kind"] == "mask":
        together = functools.reduce(operator.or_, (int(part, 16) for part in parts), 0).bit_count()
    else:
        together = len(set(parts))
    return max(own, together)


def available_memory() -> int | None:
    """Return the bytes of main memory this process may still take, None where Linux does not say.

    The least of what the machine has and of what each control group around the process leaves (batch
    systems and containers limit memory with these); what only caches files counts as free.
    """
    left = [_field(_MEMINFO, "MemAvailable:", unit=1024), *map(_left_in, _own_cgroups())]
    return min((amount for amount in left if amount is not None), default=None)


def _own_cgroups() -> list[Path]:
    try:
        lines = _OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if own is None:
        return []
    path = _CGROUPS / own.strip("/")
    return [path, *(parent for parent in path.parents if parent.is_relative_to(_CGROUPS))]


def _left_in(cgroup: Path) -> int | None:
    try:
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        current = int((cgroup / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None  # not there, or "max"
    return limit - current + (_field(cgroup / "memory.stat", "inactive_file") or 0)


def _field(file: Path, name: str, unit: int = 1) -> int | None:
    try:
        words = [line.split() for line in file.read_text(encoding="ascii", errors="replace").splitlines()]
    except OSError:
        return None
    return next((int(line[1]) * unit for line in words if line and line[0] == name), None)


def filesystem_of(path: Path) -> str:
    """Return the type of the file system of ``path``, such as "ext4"; "" if it is unknown."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    kinds = {Path(words[1]): words[2] for words in map(str.split, lines)}
    absolute = path.absolute()
    return next((kinds[place] for place in (absolute, *absolute.parents) if place in kinds), "")


def total_memory() -> int:
    """Return the bytes of memory this process may use: the machine's, or a lower cgroup limit."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CGROUP_MEMORY.read_text(encoding="ascii").strip()
    except OSError:
        return machine
    return machine if limit == "max" else min(machine, int(limit))


def held_memory() -> int:
    """Return the resident memory of this process in bytes, without pages of files; 0 if it is unknown.

    Pages of files do not count, because the kernel can drop them at any time. Memory that was freed counts
    until the allocator returns it: see `release_memory`.
    """
    resident, of_files = (_field(_STATUS, name, unit=1024) for name in ("VmRSS:", "RssFile:"))
    return 0 if resident is None or of_files is None else resident - of_files


def release_memory() -> None:
    """Return free memory between used blocks to the system, if the C library can.

    By itself, glibc returns only what is free at the end of a heap, so that a process keeps the peak of
    each of its heaps, of which every thread may have one.
    """
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
