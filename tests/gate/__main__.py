"""``PYTHONPATH=tests python -m gate [check|sample|write|amd]``: hold the kernels against the committed table.

check: every row is of today's sources, keeps the rules, and a sample compiles to what it says.
write: compile what has changed, two kernels at a time, and write the table of what keeps the rules.
What was compiled is kept in ``.cache/gate`` under its digest: a run which is stopped goes on where it was.
amd: compile attention for gfx942, of which nothing but that it compiles is expected.
"""

from __future__ import annotations

import argparse
import sys

import torch

from gate import cases, store
from gate.compiler import GFX942, launched
from gate.rules import Row, load_table, measure, problems, save_table


def main() -> int:
    """Report on a line each what is wrong; the exit status says whether anything is."""
    parser = argparse.ArgumentParser(prog="python -m gate", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["check", "write", "amd"], nargs="?", default="check")
    parser.add_argument("--minutes", type=float, default=600, help="write what is known after so long")
    parser.add_argument("--match", default="", help="only cases whose name or architecture holds this text")
    options = parser.parse_args()
    if options.command == "amd":
        return _amd()
    wanted = [case for case in cases.shipped() if options.match in f"sm_{case.arch} {case.name}"]
    if options.command == "check":
        return _check(wanted)
    store.compile_missing(wanted, options.minutes)
    return _write(wanted)


def _check(wanted: list[cases.Case]) -> int:
    table = load_table()
    known = {(row.case, row.measured.digest): row.measured for row in table}
    used, failures = set(), 0
    for case in wanted:
        for kernel in launched(case.launch, case.arch):
            row = known.get((case.name, kernel.digest))
            used.add((case.name, kernel.digest))
            found = ["not in the table: make gate"] if row is None else problems(case, row)
            failures += _report(case, kernel.kernel, found)
    stale = sum(1 for row in table if (row.case, row.measured.digest) not in used)
    sample = cases.sample()
    for kernel in launched(sample.launch, sample.arch):
        now = measure(kernel.compile(), kernel.digest)
        same = now == known.get((sample.name, kernel.digest))
        failures += _report(sample, kernel.kernel, [] if same else [f"compiles to something else: {now}"])
    _say(f"{len(table)} rows, {failures} problems, {stale} rows of no kernel")
    return 1 if failures or stale else 0


def _write(wanted: list[cases.Case]) -> int:
    """Write the cases that keep the rules into the table; without the others, the check fails."""
    rows, failures = [], 0
    for case in wanted:
        mine, found = [], []
        for kernel in launched(case.launch, case.arch):
            measured = store.load(kernel.digest)
            if measured is None:
                found.append(f"{kernel.kernel} has not been compiled")
                continue
            mine.append(Row(case.name, measured))
            found += [f"{kernel.kernel} {problem}" for problem in problems(case, measured)]
        if _report(case, "", found):
            failures += 1
        else:
            rows += mine
    save_table(rows)
    _say(f"{len(rows)} rows; {failures} cases break a rule and have none")
    return 1 if failures else 0


def _amd() -> int:
    for head_dim in (64, 128):
        case = cases.attention_case(GFX942, head_dim, torch.bfloat16, "causal, packed")
        for kernel in launched(case.launch, GFX942):
            compiled = kernel.compile()
            products = compiled.sass.count("v_mfma")
            _say(f"gfx942 {case.name}: {compiled.kernel}, {compiled.registers} registers, {products} v_mfma")
    return 0


def _report(case: cases.Case, kernel: str, found: list[str]) -> bool:
    if found:
        _say(f"FAIL sm_{case.arch} {case.name}: {kernel}: {'; '.join(found)}")
    return bool(found)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
