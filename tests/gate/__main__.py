"""``PYTHONPATH=tests python -m gate [sample|table|all|amd] [--write]``: compile, check and print kernels."""

from __future__ import annotations

import argparse
import sys

import torch

from gate import cases
from gate.compiler import GFX942, compile_launches
from gate.rules import Row, problems, row, save_table

_SETS = {"sample": cases.sampled, "table": cases.tabled, "all": cases.shipped}


def main() -> int:
    """Compile a set of cases and report each kernel on a line."""
    parser = argparse.ArgumentParser(prog="python -m gate", description=__doc__)
    parser.add_argument("set", choices=[*_SETS, "amd"], nargs="?", default="sample")
    parser.add_argument(
        "--write", action="store_true", help="replace the committed table by what was compiled"
    )
    options = parser.parse_args()
    if options.set == "amd":
        return _amd()
    rows: list[Row] = []
    failures = 0
    for case in _SETS[options.set]():
        for compiled in compile_launches(case.launch, case.arch):
            found = problems(case, compiled)
            failures += bool(found)
            described = row(case, compiled)
            if described not in rows:
                rows.append(described)
            _say(f"{'FAIL' if found else 'ok  '} {described} {'; '.join(found)}")
    if options.write:
        save_table(rows)
    _say(f"{len(rows)} kernels, {failures} with problems")
    return 1 if failures else 0


def _amd() -> int:
    for head_dim in (64, 128):
        case = cases.attention_case(GFX942, head_dim, torch.bfloat16, "causal, packed")
        for compiled in compile_launches(case.launch, GFX942):
            products = compiled.sass.count("v_mfma")
            _say(f"gfx942 {case.name}: {compiled.kernel}, {compiled.registers} registers, {products} v_mfma")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
