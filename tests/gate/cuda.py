"""The gate of the kernels in CUDA C++; ``PYTHONPATH=tests python -m gate.cuda`` writes its table."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from distllm.kernels.cuda import build

TABLE = Path(__file__).with_name("cuda.json")
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a", "sm_120a")
_REPORT = re.compile(
    r"Function properties for (?P<name>\w+).*?(?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def compile_kernels(arch: str, scratch: Path) -> list[dict[str, Any]]:
    """Return what nvcc makes of each kernel: registers of a thread, and bytes that it spills."""
    unit = scratch / "kernels.cu"
    unit.write_text("".join(f'#include "{build.HERE}/{name}.cuh"\n' for name in ("adamw", "rms_norm")))
    command = [str(build.nvcc()), "-std=c++20", "-O2", f"-arch={arch}", "-Xptxas", "-v", "-cubin"]
    report = build.run_compiler([*command, "-o", str(scratch / "kernels.cubin"), str(unit)])
    rows = []
    for found in _REPORT.finditer(report):
        (kernel,) = re.findall(r"(adamw_kernel|rms_norm_kernel|rms_norm_backward_kernel)", found["name"])[:1]
        spills = int(found["stores"]) + int(found["loads"])
        rows.append({"kernel": kernel, "arch": arch, "registers": int(found["registers"]), "spills": spills})
    return sorted(rows, key=lambda row: str(row["kernel"]))


def main() -> int:
    """Compile for every architecture and write the table."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = [row for arch in ARCHITECTURES for row in compile_kernels(arch, Path(scratch))]
    lines = ",\n  ".join(map(json.dumps, rows))
    TABLE.write_text(f'{{"source": "{build.source_digest()}", "rows": [\n  {lines}\n]}}\n', encoding="utf-8")
    print("\n".join(map(str, rows)))
    return 1 if any(row["spills"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
