"""Finds what would stop, slow or hang training on this machine, and how to fix it.

Nothing here imports torch: versions come from package metadata, devices from ``nvidia-smi``. A check
yields findings and never raises; the order of `diagnose` is the order of the report.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from distllm.config.attention import BACKENDS, PACKAGES, Machine
from distllm.fsio import free_bytes
from distllm.machine import available_cores, total_memory
from distllm.units import format_bytes, format_duration

Level = Literal["ok", "warn", "fail"]

DEMO_RANKS = 2
LITTLE_MEMORY = 4 * 2**30
LITTLE_DISK, NO_DISK = 10 * 2**30, 2**30
LITTLE_SHARED_MEMORY = 2**30
LONGEST_BUILD_SECONDS = 30 * 60
LAUNCHERS = ("deepspeed", "torchrun", "srun", "sbatch", "pdsh", "mpirun")
LINKED_PACKAGES = ("kernels", "conf", "launch")

_PACKAGE = Path(__file__).resolve().parent
_PROC = Path("/proc")
_SHARED_MEMORY = Path("/dev/shm")

_IMPORT_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; ``remedy`` is empty if nothing has to be done."""

    level: Level
    name: str
    detail: str
    remedy: str = ""


def diagnose(directory: Path, *, deep: bool = False) -> list[Finding]:
    """Check this machine and installation.

    Args:
        directory: where runs and data will be written; it need not exist.
        deep: also import torch and deepspeed, each in a separate process.
    """
    findings = [
        *_python(),
        *_dependencies(),
        *_devices(),
        *_kernels(),
        *_cores_and_memory(),
        *_compiler(),
        *_launchers(),
        *_disk(directory),
        *_shared_memory(),
        *_build_locks(directory),
        *_links(),
    ]
    return findings + ([*_import("torch"), *_import("deepspeed")] if deep else [])


def exit_code(findings: list[Finding]) -> int:
    """Return 1 if anything must be fixed before training, else 0."""
    return int(any(finding.level == "fail" for finding in findings))


def render(findings: list[Finding]) -> str:
    """Return the findings as a table, each with its remedy below it, and the counts at the end."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<4}  {finding.name:<{width}}  {finding.detail}")
        if finding.remedy:
            lines.append(f"{'':<4}  {'':<{width}}  -> {finding.remedy}")
    fails, warns = (sum(finding.level == level for finding in findings) for level in ("fail", "warn"))
    return "\n".join([*lines, "", f"{fails} to fix, {warns} warnings, {len(findings)} checked"])


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    required = _required_python()
    if _satisfies(version, required):
        yield Finding("ok", "python", f"{version} at {sys.executable}")
    else:
        yield Finding("fail", "python", f"{version} does not fit {required}", f"install Python {required}")


def _required_python() -> str:
    try:
        return metadata.metadata("distllm")["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        return ""


def _dependencies() -> Iterator[Finding]:
    """Compare the installed packages with the requirements of this one."""
    try:
        requirements = metadata.requires("distllm") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            "fail", "packages", "distllm itself is not installed", "pip install -e . in the checkout"
        )
        return
    good = []
    for text in requirements:
        name, conditions, extra = _requirement(text)
        if extra not in ("", "eval"):
            continue
        installed = _version(name)
        if installed is not None and _satisfies(installed, conditions):
            good.append(f"{name} {installed}")
        elif extra:
            problem = f"{installed or 'none'} installed; export checks and the demo need {name}{conditions}"
            yield Finding("warn", name, problem, f"pip install 'distllm[{extra}]'")
        else:
            problem = f"{installed or 'none'} installed, {conditions or 'any version'} required"
            yield Finding("fail", name, problem, f"pip install '{name}{conditions}'")
    yield Finding("ok", "packages", ", ".join(good) or "none")


def _requirement(text: str) -> tuple[str, str, str]:
    """Split ``name>=1,<2; extra == "eval"`` into name, conditions and extra."""
    wanted, _, marker = text.partition(";")
    match = re.match(r"\s*([\w.-]+)\s*(?:\[[^]]*\])?\s*\(?([^)]*)\)?", wanted)
    assert match is not None, text
    extra = re.search(r"extra == [\"'](\w+)[\"']", marker)
    return match.group(1), match.group(2).replace(" ", ""), extra.group(1) if extra else ""


def _satisfies(version: str, conditions: str) -> bool:
    """Compare release numbers; ``>=`` and ``<`` are the only operators our requirements use."""
    for condition in filter(None, conditions.split(",")):
        operator, bound = (
            (condition[:2], condition[2:]) if condition[1] == "=" else (condition[:1], condition[1:])
        )
        if operator not in (">=", "<"):
            raise ValueError(f"cannot compare {condition!r}")
        if (_release(version) >= _release(bound)) != (operator == ">="):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    """``2.13.0rc1+cpu`` as ``(2, 13)``: trailing zeros do not count."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    release = [int(part) for part in numbers.group().split(".")] if numbers else []
    while release and release[-1] == 0:
        release.pop()
    return tuple(release)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Finding]:
    build = _torch_build()
    if build is not None:
        yield Finding("ok", "torch build", build)
    if shutil.which("nvidia-smi") is None:
        yield Finding("ok", "gpu", "no NVIDIA driver here: training runs on CPU")
        return
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    code, output = _output(query, seconds=20)
    gpus = [line.strip() for line in output.splitlines() if line.strip()]
    if code != 0 or not gpus:
        problem = f"nvidia-smi fails: {gpus[-1] if gpus else 'no output'}"
        yield Finding("fail", "gpu", problem, "fix the driver, or train elsewhere with cluster.device=cpu")
    elif build is not None and not build.startswith("cuda"):
        remedy = "install the CUDA build of the same torch version (https://pytorch.org/get-started)"
        yield Finding("warn", "gpu", f"{len(gpus)} found ({gpus[0]}), but torch is a {build} build", remedy)
    else:
        yield Finding("ok", "gpu", f"{len(gpus)} found: " + "; ".join(sorted(set(gpus))))


def _kernels() -> Iterator[Finding]:
    """List the attention backends that work on this machine, and what the others lack."""
    machine, device = _attention_machine(), "cuda" if shutil.which("nvidia-smi") else "cpu"
    absent = {name: backend.absent(machine, device) for name, backend in BACKENDS.items()}
    here = ", ".join(name for name, why in absent.items() if why is None)
    lacking = "; ".join(f"{name} {why}" for name, why in absent.items() if why is not None)
    remedy = "pip install 'distllm[kernels]'" if device == "cuda" and "triton" not in machine.packages else ""
    yield Finding("ok", "kernels", f"attention here: {here}; {lacking}", remedy)


def _attention_machine() -> Machine:
    installed = frozenset(name for name in PACKAGES if _version(name) is not None)
    code, output = _output(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], seconds=20)
    found = re.search(r"^(\d+)\.(\d+)", output, re.MULTILINE) if code == 0 else None
    return Machine((int(found[1]), int(found[2])) if found else None, installed)


def _torch_build() -> str | None:
    """Return ``cpu``, ``cuda 13.0`` or ``rocm 7.1``, read from torch's files; None if there is no torch."""
    try:
        path = Path(str(metadata.distribution("torch").locate_file("torch/version.py")))
        text = path.read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, OSError):
        return None
    for name, key in (("cuda", "cuda"), ("rocm", "hip")):
        found = re.search(rf"^{key}\b[^=]*= '([^']+)'", text, flags=re.MULTILINE)
        if found:
            return f"{name} {found.group(1)}"
    return "cpu"


def _cores_and_memory() -> Iterator[Finding]:
    cores = available_cores()
    if cores < DEMO_RANKS:
        problem = f"{cores} for this process; the demo starts {DEMO_RANKS} ranks"
        yield Finding(
            "warn", "cores", problem, "cluster.procs_per_node=1, or allow sharing with oversubscribe=true"
        )
    else:
        yield Finding("ok", "cores", f"{cores} for this process: up to {cores} CPU ranks")
    memory = total_memory()
    little = memory < LITTLE_MEMORY
    remedy = "use fewer ranks, or a smaller engine.micro_batch_tokens" if little else ""
    yield Finding("warn" if little else "ok", "memory", format_bytes(memory), remedy)


def _compiler() -> Iterator[Finding]:
    found = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if found:
        yield Finding("ok", "compiler", found)
    else:
        yield Finding(
            "warn", "compiler", "no C++ compiler; only engine.compile=true needs one", "apt-get install g++"
        )


def _launchers() -> Iterator[Finding]:
    beside_python = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    found = [name for name in LAUNCHERS if shutil.which(name, path=beside_python)]
    missing = [name for name in LAUNCHERS if name not in found]
    detail = f"{', '.join(found) or 'none'} found; {', '.join(missing) or 'none'} missing"
    if "torchrun" in found or "srun" in found:
        yield Finding("ok", "launchers", detail)
    else:
        yield Finding("warn", "launchers", detail, "on one machine, distllm train needs none of them")


def _disk(directory: Path) -> Iterator[Finding]:
    existing = directory.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(
            "fail", "disk", f"{existing} cannot be written", "set runs_dir to a directory you may write"
        )
        return
    free = free_bytes(directory)
    detail = f"{format_bytes(free)} free for {directory}"
    if free < NO_DISK:
        yield Finding("fail", "disk", detail, "free space, or point runs_dir and data.out at another disk")
    elif free < LITTLE_DISK:
        yield Finding("warn", "disk", detail, "lower checkpoint.keep_last, or point runs_dir at another disk")
    else:
        yield Finding("ok", "disk", detail)


def _shared_memory() -> Iterator[Finding]:
    if not _SHARED_MEMORY.is_dir():
        return
    total = shutil.disk_usage(_SHARED_MEMORY).total
    detail = f"{format_bytes(total)} at {_SHARED_MEMORY}"
    if total < LITTLE_SHARED_MEMORY:
        remedy = "ranks on one machine exchange data there: start the container with --shm-size=8g"
        yield Finding("warn", "shared memory", detail, remedy)
    else:
        yield Finding("ok", "shared memory", detail)


def _build_locks(directory: Path) -> Iterator[Finding]:
    """Find stale locks, for which torch's extension builder would wait for ever without a message.

    The builder keeps its lock file open. So a lock that no process here has open is stale, unless
    another machine of a shared disk is building, which takes a limited time.
    """
    roots = [
        Path(os.environ.get("TORCH_EXTENSIONS_DIR") or directory / ".torch_extensions"),
        Path.home() / ".cache" / "torch_extensions",
        directory / ".cache" / "torch_extensions",
        Path.cwd() / ".cache" / "torch_extensions",
    ]
    locks = sorted({lock.resolve() for root in roots if root.is_dir() for lock in root.rglob("lock")})
    holders = _holders(locks) if locks else {}
    for lock in locks:
        try:
            age = max(0.0, time.time() - lock.stat().st_mtime)
        except OSError:
            continue  # released in the meantime
        what, remove = f"{lock}, {format_duration(age)} old", f"rm {shlex.quote(str(lock))}"
        if lock in holders:
            problem = f"process {holders[lock]} is building: {what}"
            yield Finding("warn", "build lock", problem, "wait for it; do not kill it")
        elif age < LONGEST_BUILD_SECONDS:
            problem = f"no process here holds {what}"
            yield Finding("warn", "build lock", problem, f"unless another machine is building: {remove}")
        else:
            problem = f"stale; every job that builds here hangs: {what}"
            yield Finding("fail", "build lock", problem, remove)
    if not locks:
        yield Finding("ok", "build locks", "none")


def _holders(paths: list[Path]) -> dict[Path, int]:
    """Return, for each of ``paths`` that is open, a process that has it open and that this user may see."""
    wanted = {str(path): path for path in paths}
    found: dict[Path, int] = {}
    for descriptor in _PROC.glob("[0-9]*/fd/*"):
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue  # the process ended, or belongs to another user
        if target in wanted:
            found[wanted[target]] = int(descriptor.parts[-3])
    return found


def _links() -> Iterator[Finding]:
    """Check the packages that are symbolic links in a checkout; git without link support makes text files."""
    broken = [name for name in LINKED_PACKAGES if not (_PACKAGE / name / "__init__.py").is_file()]
    if broken:
        places = " ".join(f"distllm/{name}" for name in broken)
        remedy = (
            f"git config core.symlinks true && git checkout -- {places}, on a disk that has symbolic links"
        )
        yield Finding("fail", "links", f"{places}: no package there", remedy)
    else:
        yield Finding("ok", "links", f"{', '.join(LINKED_PACKAGES)} in place")


def _import(name: str) -> Iterator[Finding]:
    code = f"import {name}; print({name}.__version__)"
    started = time.monotonic()
    status, output = _output([sys.executable, "-c", code], seconds=_IMPORT_SECONDS)
    last = output.strip().splitlines()[-1] if output.strip() else "no output"
    if status == 0:
        took = format_duration(time.monotonic() - started)
        yield Finding("ok", f"import {name}", f"{last} in {took}")
    else:
        yield Finding("fail", f"import {name}", last, f"pip install --force-reinstall {name}")


def _output(command: list[str], seconds: float) -> tuple[int, str]:
    """Run ``command``; return its exit code and output. A command that takes too long counts as failed."""
    try:
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, f"no answer after {format_duration(seconds)}"
    except OSError as error:
        return 1, str(error)
    return result.returncode, result.stdout
