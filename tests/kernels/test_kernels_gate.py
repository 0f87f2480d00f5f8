"""The compile gate: the committed table is of these sources, passes the rules, and can be compiled again."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from gate import roofline, rules, store
from gate.cases import Case
from gate.compiler import Compiled

TESTS = Path(rules.__file__).parents[1]
FINE = rules.Measured("forward_kernel", 90, "0" * 16, 128, 0, 1000, 8, 24, 0, 16, 0, 900)
MATRIX = Case("attention", "a case", 90, True, lambda: None)
STREAMING = Case("attention", "a case", 90, True, lambda: None, frozenset({"forward"}))
POINTWISE = Case("pointwise", "a case", 90, False, lambda: None)


@pytest.fixture(scope="module")
def table():
    return rules.load_table()


@pytest.mark.timeout(600)
def test_the_table_is_of_these_sources_keeps_the_rules_and_a_sample_compiles_to_what_it_says():
    """Interpretation is chosen when a module is imported: compilation needs a process without it."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    del environment["TRITON_INTERPRET"]
    command = [sys.executable, "-m", "gate", "check"]
    done = subprocess.run(
        command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, timeout=590, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, "compile again and explain the difference: make gate\n" + said
    rows = len(rules.load_table())
    assert re.search(rf"^{rows} rows, 0 problems, 0 rows of no kernel$", said, re.MULTILINE)


def test_the_table_holds_every_kernel_on_every_architecture(table):
    kernels = {row.measured.kernel for row in table}
    assert len(kernels) == 12
    for arch in (80, 90, 100, 120):
        here = {row.measured.kernel for row in table if row.measured.arch == arch}
        assert here == kernels, arch


def test_every_head_size_is_proven_and_streamed_where_the_tables_say_so(table):
    found = {(row.measured.arch, row.case) for row in table}
    streamed = {(row.measured.arch, row.case) for row in table if row.measured.tma}
    for arch in (80, 90, 100, 120):
        for dtype in ("bf16", "fp16", "fp32"):
            names = {f"attention {head_dim} {dtype}, causal, packed" for head_dim in (64, 96, 128, 192, 256)}
            assert {(arch, name) for name in names} <= found
    assert {arch for arch, _ in streamed} == {90, 100}
    assert (90, "attention 128 bf16, causal, packed") in streamed
    assert (90, "attention 128 bf16, heads apart") not in streamed


def test_what_is_kept_is_not_compiled_again(monkeypatch, tmp_path):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    assert store.load(FINE.digest) is None
    store._keep(FINE)
    assert store.load(FINE.digest) == FINE


@pytest.mark.parametrize(
    ("case", "changes", "problem"),
    [
        (MATRIX, {}, None),
        (MATRIX, {"stack": 8}, "spills 8 bytes"),
        (MATRIX, {"shared": 240_000}, "wants 240000 bytes of shared memory"),
        (MATRIX, {"registers": 255, "warps": 16}, "16 warps of 255 registers do not fit"),
        (MATRIX, {"older": 4}, "uses the older mma.sync"),
        (MATRIX, {"matrix": 0}, "does not use wgmma.mma_async"),
        (MATRIX, {"tma": 2}, "uses cp.async.bulk.tensor"),
        (STREAMING, {"tma": 2}, None),
        (STREAMING, {}, "loads no tile by cp.async.bulk.tensor"),
        (POINTWISE, {"matrix": 0}, None),
        (POINTWISE, {"wide": 0}, "no 128-bit accesses"),
        (POINTWISE, {"narrow": 3}, "3 accesses of 8 or 16 bits"),
    ],
)
def test_the_rules_find_what_they_look_for(case, changes, problem):
    found = rules.problems(case, replace(FINE, **changes))
    assert [problem in text for text in found] == ([True] if problem else [])


def test_instructions_are_counted_in_the_machine_code():
    sass = "        /*0000*/ LDG.E.128 R1 ;\n        /*0010*/ @P0 STG.E.U16 R1 ;\n        /*0020*/ EXIT ;"
    compiled = Compiled(
        "forward_kernel", 90, 128, 0, 1000, 8, "wgmma.mma_async mma.sync cp.async.bulk.tensor", sass
    )
    measured = rules.measure(compiled, "0" * 16)
    assert (measured.wide, measured.narrow, measured.instructions) == (1, 1, 3)
    assert (measured.matrix, measured.older, measured.tma) == (1, 1, 1)


def test_residents_are_limited_by_registers_shared_memory_and_warps():
    (a100, *_) = roofline.GPUS
    assert roofline.resident(replace(FINE, registers=128, shared=0), a100) == 2
    assert roofline.resident(replace(FINE, registers=129, shared=0), a100) == 1  # handed out by 256 to a warp
    assert roofline.resident(replace(FINE, registers=32, shared=80_000), a100) == 2
    assert roofline.resident(replace(FINE, registers=16, shared=0), a100) == 8


def test_a_device_is_found_by_its_name():
    assert roofline.gpu_named("NVIDIA H100 80GB HBM3").name == "H100 SXM"
    assert roofline.gpu_named("NVIDIA GeForce RTX 5090").arch == 120
    assert roofline.gpu_named("NVIDIA T4") is None


def test_a_copy_takes_the_time_of_its_bytes_and_a_product_that_of_its_operations():
    _, h100, *_ = roofline.GPUS
    copy = roofline.predict(
        roofline.Work(10**6, 0, 0, 0, 3.35e9), replace(FINE, registers=32, shared=0), h100
    )
    assert copy.bound == "memory"
    assert copy.overlapped == copy.serial == pytest.approx(1e-3 / roofline.STREAM)
    product = roofline.predict(roofline.Work(132 * 1000, 794.5e9, 0, 0, 1.0), FINE, h100)
    assert (product.bound, product.serial) == ("matrix products", pytest.approx(1e-3))
    with pytest.raises(ValueError, match="does not fit"):
        roofline.predict(roofline.Work(1, 1, 1, 1, 1), replace(FINE, shared=240_000), h100)


@pytest.mark.parametrize(("name", "head_dim", "figures", "source"), roofline.PUBLISHED)
def test_published_forward_speeds_lie_near_the_predicted_range(name, head_dim, figures, source):
    """Of Triton's attention, a peer of ours; the fastest kernels must not be faster than the upper bound."""
    (gpu,) = (gpu for gpu in roofline.GPUS if gpu.name == name)
    shape = (16384, 16, 1)
    time = roofline.attention_times(gpu, head_dim, *shape)["forward_kernel"]
    flops = roofline.useful_flops(head_dim, *shape)
    low, high = flops / time.serial / 1e12, flops / time.overlapped / 1e12
    assert 0.75 * low <= figures["Triton"] <= high
    assert max(figures.values()) <= 1.05 * high
