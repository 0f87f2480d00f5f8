"""The compile gate: the committed table is of these sources, passes the rules, and can be compiled again."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gate import rules

TESTS = Path(rules.__file__).parents[1]


@pytest.fixture(scope="module")
def table():
    return rules.load_table()


def test_the_table_was_compiled_from_these_sources(table):
    sources, _ = table
    current = {room: rules.digest(room) for room in sources}
    assert sources == current, "compile again and explain the difference: make gate"


def test_the_table_holds_every_attention_kernel_on_every_architecture(table):
    _, rows = table
    kernels = {row.kernel for row in rows}
    assert len(kernels) == 4
    for arch in (80, 90, 100, 120):
        assert {row.kernel for row in rows if row.arch == arch} == kernels


def test_no_kernel_of_the_table_spills_or_wants_too_much(table):
    for row in table[1]:
        assert row.stack == 0, row
        assert row.shared <= rules.SHARED_LIMIT[row.arch], row
        assert row.registers * row.warps * 32 <= 65536, row
        assert bool(row.matrix) == (row.kernel != "delta_kernel"), row
        assert row.wide_accesses > 0, row


@pytest.mark.timeout(600)
def test_a_sample_compiles_to_what_the_table_says(table):
    """Interpretation is chosen when a module is imported: compilation needs a process without it."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    del environment["TRITON_INTERPRET"]
    command = [sys.executable, "-m", "gate", "sample"]
    done = subprocess.run(
        command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, timeout=590, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    compiled = re.findall(r"^ok   (Row\(.*\)) $", done.stdout, re.MULTILINE)
    assert len(compiled) == 4
    known = {str(row) for row in table[1]}
    assert [row for row in compiled if row not in known] == []


def compiled(**changes):
    from gate.compiler import Compiled

    fine = {"kernel": "forward_kernel", "arch": 90, "registers": 128, "stack": 0, "shared": 1000, "warps": 8}
    fine |= {"ptx": "wgmma.mma_async", "sass": "        /*0000*/ LDG.E.128 R1 ;"}
    return Compiled(**{**fine, **changes})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"stack": 8}, "spills 8 bytes"),
        ({"shared": 240_000}, "wants 240000 bytes of shared memory"),
        ({"registers": 255, "warps": 16}, "16 warps of 255 registers do not fit"),
        ({"ptx": "mma.sync wgmma.mma_async"}, "uses the older mma.sync"),
        ({"ptx": "fma"}, "does not use wgmma.mma_async"),
    ],
)
def test_the_rules_find_what_they_look_for(changes, problem):
    from gate.cases import Case

    case = Case("attention", "a case", 90, True, lambda: None)
    found = rules.problems(case, compiled(**changes))
    assert [problem in text for text in found] == ([True] if problem else [])


def test_narrow_accesses_of_pointwise_kernels_are_found():
    from gate.cases import Case

    case = Case("pointwise", "a case", 90, False, lambda: None)
    narrow = compiled(sass="        /*0000*/ LDG.E.U16 R1 ;\n        /*0010*/ @P0 STG.E.U16 R1 ;")
    assert rules.problems(case, narrow) == ["no 128-bit loads", "1 LDG.E.U16", "1 STG.E.U16"]
