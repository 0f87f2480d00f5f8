"""What has been compiled, by digest, and the compilation of what has not."""

from __future__ import annotations

import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from triton.errors import TritonError

from gate.cases import Case, shipped
from gate.compiler import launched
from gate.rules import Measured, load_table, measure

FOLDER = Path(__file__).parents[2] / ".cache" / "gate"
_WORKERS = 2


def load(digest: str) -> Measured | None:
    """Return what a kernel compiled to, None if it has not been compiled."""
    path = FOLDER / f"{digest}.json"
    return Measured(**json.loads(path.read_text("utf-8"))) if path.exists() else None


def compile_missing(cases: list[Case], minutes: float) -> None:
    """Compile for so long what is not kept of ``cases``; what fails is printed, and stays missing."""
    until = time.monotonic() + 60 * minutes
    FOLDER.mkdir(parents=True, exist_ok=True)
    for row in load_table():
        _keep(row.measured)
    missing: dict[str, Case] = {}
    for case in cases:
        for kernel in launched(case.launch, case.arch):
            if load(kernel.digest) is None:
                missing.setdefault(kernel.digest, case)
    names = {(case.arch, case.name) for case in missing.values()}
    if not names:
        return
    print(f"{len(missing)} kernels of {len(names)} cases to compile", flush=True)
    with ProcessPoolExecutor(_WORKERS, get_context("spawn")) as pool:
        tasks = [
            pool.submit(_compile_case, *name, until)
            for name in sorted(names, key=lambda n: (n[1][::-1], n[0]))
        ]
        for done, task in enumerate(as_completed(tasks), 1):
            print(f"{done}/{len(tasks)}", *task.result(), sep="\n  ", flush=True)


def _compile_case(arch: int, name: str, until: float) -> list[str]:
    """Compile and keep one case's kernels; return a line each."""
    (case,) = (case for case in shipped() if (case.arch, case.name) == (arch, name))
    lines = []
    for kernel in launched(case.launch, arch):
        if load(kernel.digest) is not None or time.monotonic() > until:
            continue
        try:
            measured = measure(kernel.compile(), kernel.digest)
        except (RuntimeError, TritonError) as error:  # a failure is one kernel's; the others go on
            lines.append(f"sm_{arch} {name}: {kernel.kernel} does not compile: {error}")
            continue
        _keep(measured)
        lines.append(f"sm_{arch} {name}: {measured}")
    return lines


def _keep(measured: Measured) -> None:
    path = FOLDER / f"{measured.digest}.json"
    if not path.exists():
        partial = path.with_suffix(f".{measured.kernel}")
        partial.write_text(json.dumps(asdict(measured)), encoding="utf-8")
        partial.replace(path)
