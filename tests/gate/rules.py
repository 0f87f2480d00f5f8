"""What a compiled kernel must look like, and the table of what it did look like."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from distllm import kernels
from gate.cases import Case
from gate.compiler import GFX942, Compiled

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
_WITHOUT_PRODUCTS = "delta_kernel"


@dataclass(frozen=True, slots=True)
class Row:
    """One kernel of one case in the table; ``instructions`` counts matrix, 128-bit and all of them."""

    case: str
    kernel: str
    arch: int
    registers: int
    stack: int
    shared: int
    warps: int
    matrix: int
    wide_accesses: int
    instructions: int


def row(case: Case, compiled: Compiled) -> Row:
    """Describe a compiled kernel."""
    wide = compiled.count("LDG.E.128") + compiled.count("STG.E.128")
    matrix = compiled.ptx.count(MATRIX[compiled.arch][0])
    every = len(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/", compiled.sass, re.MULTILINE))
    return Row(
        case.name, compiled.kernel, compiled.arch, compiled.registers, compiled.stack, compiled.shared,
        compiled.warps, matrix, wide, every,
    )  # fmt: skip


def problems(case: Case, compiled: Compiled) -> list[str]:
    """Return what is wrong with a compiled kernel, in words; of gfx942 only that it compiles is expected."""
    if compiled.arch == GFX942:
        return []
    found = []
    if compiled.stack:
        found.append(f"spills {compiled.stack} bytes per thread")
    if compiled.shared > SHARED_LIMIT[compiled.arch]:
        found.append(f"wants {compiled.shared} bytes of shared memory of {SHARED_LIMIT[compiled.arch]}")
    if compiled.registers * compiled.warps * 32 > _REGISTERS:
        found.append(f"{compiled.warps} warps of {compiled.registers} registers do not fit")
    own, older = MATRIX[compiled.arch]
    if case.matrix and compiled.kernel != _WITHOUT_PRODUCTS:
        if own not in compiled.ptx:
            found.append(f"does not use {own}")
        if older and older in compiled.ptx:
            found.append(f"uses the older {older}")
    if case.room == "pointwise":
        narrow = [f"{access}.E.U{bits}" for access in ("LDG", "STG") for bits in (8, 16)]
        if not compiled.count("LDG.E.128"):
            found.append("no 128-bit loads")
        found += [f"{compiled.count(name)} {name}" for name in narrow if compiled.count(name)]
    return found


def digest(room: str) -> str:
    """Return the digest of the sources that decide what is compiled in ``room``."""
    root = Path(kernels.__file__).parent
    files = [*sorted((root / room).glob("*.py")), root / "device.py", TABLE.with_name("cases.py")]
    content = b"".join(path.read_bytes() for path in files if path.name not in ("op.py", "reference.py"))
    return hashlib.sha256(content).hexdigest()[:16]


def load_table() -> tuple[dict[str, str], list[Row]]:
    """Return the digests of the sources the committed table was compiled from, and its rows."""
    content = json.loads(TABLE.read_text(encoding="utf-8"))
    return content["sources"], [Row(**fields) for fields in content["rows"]]


def save_table(rows: list[Row]) -> None:
    """Write the table, one row a line so that a difference reads well."""
    lines = ",\n  ".join(
        json.dumps(asdict(row)) for row in sorted(rows, key=lambda r: (r.arch, r.case, r.kernel))
    )
    sources = json.dumps({room: digest(room) for room in ("attention",)})
    TABLE.write_text(f'{{"sources": {sources}, "rows": [\n  {lines}\n]}}\n', encoding="utf-8")
