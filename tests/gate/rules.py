"""What a compiled kernel must look like, and the table of what it did look like."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from gate.cases import Case
from gate.compiler import Compiled

TABLE = Path(__file__).with_name("table.json")
# The shared memory a program may ask for, in bytes (CUDA programming guide, table of compute capabilities).
SHARED_LIMIT = {80: 166912, 90: 232448, 100: 232448, 120: 101376}
# The matrix instruction of an architecture, and that of an older one which must not appear beside it.
MATRIX = {
    80: ("mma.sync", ""),
    90: ("wgmma.mma_async", "mma.sync"),
    100: ("tcgen05.mma", "mma.sync"),
    120: ("mma.sync", ""),
}
_REGISTERS = 65536  # of a multiprocessor
_SCALARS = {"cross_entropy_forward_kernel": 1}  # it reads one logit of a token alone, that of the target
_NARROW = tuple(f"{access}.E.U{bits}" for access in ("LDG", "STG") for bits in (8, 16))


@dataclass(frozen=True, slots=True)
class Measured:
    """One kernel as the compiler left it: registers of a thread, bytes, and counts of instructions.

    ``matrix`` counts the architecture's own matrix instruction and ``older`` that of an older one, both in
    PTX; ``wide`` counts accesses of 128 bits to global memory and ``narrow`` those of 8 and 16; ``tma``
    counts loads of tiles by the tensor memory accelerator.
    """

    kernel: str
    arch: int
    digest: str
    registers: int
    stack: int
    shared: int
    warps: int
    matrix: int
    older: int
    wide: int
    narrow: int
    instructions: int
    tma: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """What a case of the table compiles to."""

    case: str
    measured: Measured


def measure(compiled: Compiled, digest: str) -> Measured:
    """Describe a compiled kernel."""
    own, older = MATRIX.get(compiled.arch, ("v_mfma", ""))
    return Measured(
        compiled.kernel, compiled.arch, digest, compiled.registers, compiled.stack, compiled.shared,
        compiled.warps,
        matrix=compiled.ptx.count(own),
        older=compiled.ptx.count(older) if older else 0,
        wide=compiled.count("LDG.E.128") + compiled.count("STG.E.128"),
        narrow=sum(map(compiled.count, _NARROW)),
        instructions=len(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/", compiled.sass, re.MULTILINE)),
        tma=compiled.ptx.count("cp.async.bulk.tensor"),
    )  # fmt: skip


def problems(case: Case, kernel: Measured) -> list[str]:
    """Return what is wrong with a compiled kernel, in words."""
    found = []
    if kernel.stack:
        found.append(f"spills {kernel.stack} bytes per thread")
    if kernel.shared > SHARED_LIMIT[kernel.arch]:
        found.append(f"wants {kernel.shared} bytes of shared memory of {SHARED_LIMIT[kernel.arch]}")
    if kernel.registers * kernel.warps * 32 > _REGISTERS:
        found.append(f"{kernel.warps} warps of {kernel.registers} registers do not fit")
    own, older = MATRIX[kernel.arch]
    if case.matrix and kernel.kernel != "delta_kernel":
        if not kernel.matrix:
            found.append(f"does not use {own}")
        if kernel.older:
            found.append(f"uses the older {older}")
    streams = kernel.kernel.removesuffix("_kernel") in case.streams
    if streams != bool(kernel.tma):
        found.append("loads no tile by cp.async.bulk.tensor" if streams else "uses cp.async.bulk.tensor")
    if not kernel.wide:
        found.append("no 128-bit accesses")
    if case.room == "pointwise" and kernel.narrow > _SCALARS.get(kernel.kernel, 0):
        found.append(f"{kernel.narrow} accesses of 8 or 16 bits")
    return found


def load_table(path: Path = TABLE) -> list[Row]:
    """Return the rows of the committed table."""
    return [Row(fields.pop("case"), Measured(**fields)) for fields in json.loads(path.read_text("utf-8"))]


def save_table(rows: Iterable[Row], path: Path = TABLE) -> None:
    """Write the table, one row a line so that a difference reads well."""
    ordered = sorted(
        rows, key=lambda row: (row.measured.arch, row.case, row.measured.kernel, row.measured.digest)
    )
    lines = ",\n".join(json.dumps({"case": row.case, **asdict(row.measured)}) for row in ordered)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
