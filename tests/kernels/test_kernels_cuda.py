"""The CUDA C++ kernels, run as host code: against their definition in torch, and under sanitizers."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from gate.cuda import TABLE, compile_kernels

from distllm.errors import DistllmError, MissingDependency
from distllm.kernels.cuda import build, op, reference
from distllm.optim.stochastic import StochasticAdamW

HERE = Path(__file__).parent
RATES = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "seed": 7}
needs_nvcc = pytest.mark.skipif(build.nvcc() is None, reason="nvcc is not installed")


@pytest.fixture(scope="module")
def operators():
    return op.operators("cpu")


def tensors(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(size, generator=generator) for size in sizes]
    return (
        [x.bfloat16() for x in draw],
        [torch.randn(size, generator=generator).bfloat16() for size in sizes],
        [0.1 * torch.randn(size, generator=generator) for size in sizes],
        [torch.rand(size, generator=generator) for size in sizes],
    )


def copies(lists):
    return [[x.clone() for x in one] for one in lists]


def test_philox_gives_the_published_words():
    """Known answers of the authors' Random123 distribution, kat_vectors."""
    zeros = reference.philox(torch.zeros(4, 1, dtype=torch.int64), (0, 0))
    assert [f"{int(word):08x}" for word in zeros] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    ones = reference.philox(torch.full((4, 1), 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF))
    assert [f"{int(word):08x}" for word in ones] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]


def test_adamw_is_its_definition_to_the_last_bit(operators):
    """Odd lengths, an empty tensor, a tensor of two blocks, and more tensors than a launch takes."""
    lists = tensors([1, 7, 8, 0, 9, 8200, *[(3, 5)] * 50])
    found, expected = copies(lists), copies(lists)
    for step in (1, 2):
        op.adamw(*found, **RATES, step=step)
        reference.adamw(*expected, **RATES, step=step)
    for ours, theirs in zip(found, expected, strict=True):
        for x, y in zip(ours, theirs, strict=True):
            assert torch.equal(x, y)
    assert not torch.equal(found[0][5], lists[0][5])


def test_its_update_is_that_of_torch(operators):
    weights, grads, means, squares = tensors([4096])
    means[0].zero_(), squares[0].zero_()
    single = weights[0].float().requires_grad_()
    single.grad = grads[0].float()
    peer = torch.optim.AdamW([single], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    peer.step()
    op.adamw(weights, grads, means, squares, **RATES, step=1)
    ulp = single.detach().abs() / 128 + 1e-30
    assert bool(((weights[0].float() - single.detach()).abs() <= ulp).all())
    torch.testing.assert_close(means[0], peer.state[single]["exp_avg"])


def test_rounding_is_unbiased_where_rounding_to_nearest_loses_the_update(operators):
    """65536 weights of 1.0 and an update of a tenth of a bf16 step: their mean is fp32's within 5 sigma."""
    size, unit = 65536, 2.0**-7
    weights, grads = [torch.ones(size).bfloat16()], [-torch.ones(size).bfloat16()]
    moments = [torch.zeros(size)], [torch.zeros(size)]
    rates = {**RATES, "lr": unit / 10, "weight_decay": 0.0, "betas": (0.0, 0.0)}
    op.adamw(weights, grads, *moments, **rates, step=1)
    moved = weights[0].float() - 1.0
    assert set(moved.unique().tolist()) == {0.0, unit}
    sigma = unit * (0.1 * 0.9 / size) ** 0.5
    assert abs(float(moved.double().mean()) - unit / 10) <= 5 * sigma
    halves = (moved > 0).view(-1, 2).double()  # neighbours share a random word, and must not move together
    assert abs(float(halves[:, 0].mul(halves[:, 1]).mean()) - 0.01) <= 5 * (0.01 / (size / 2)) ** 0.5
    again = [torch.ones(size).bfloat16()]
    op.adamw(again, grads, [torch.zeros(size)], [torch.zeros(size)], **rates, step=1)
    assert torch.equal(again[0], weights[0])
    for other in ({"step": 2}, {"seed": 8}):
        more = [torch.ones(size).bfloat16()]
        op.adamw(more, grads, [torch.zeros(size)], [torch.zeros(size)], **{**rates, "step": 1, **other})
        assert not torch.equal(more[0], weights[0])


def test_values_that_are_not_finite_stay_what_they_are(operators):
    weights = [torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0] * 2).bfloat16()]
    op.adamw(weights, [torch.zeros(8).bfloat16()], [torch.zeros(8)], [torch.zeros(8)], **RATES, step=1)
    assert weights[0].isfinite().tolist() == [False, False, False, True] * 2
    assert float(weights[0][3]) == pytest.approx(1.0, abs=2.0**-7)


@pytest.mark.parametrize(("rows", "channels"), [(1, 8), (5, 1000), (3, 4104)])
def test_rms_norm_errs_at_most_twice_as_much_as_eager(operators, rows, channels):
    generator = torch.Generator().manual_seed(1)
    x, dy, weight = (
        torch.randn(*size, generator=generator) for size in ((rows, channels),) * 2 + ((channels,),)
    )

    def run(function, dtype):
        inputs = [value.bfloat16().to(dtype).requires_grad_() for value in (x, weight)]
        out = function(*inputs)
        return [out, *torch.autograd.grad(out, inputs, dy.bfloat16().to(dtype))]

    def eager(x, weight):
        return torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-5)

    exact = run(eager, torch.float64)
    found = run(lambda x, weight: op.rms_norm(x, weight, 1e-5), torch.bfloat16)
    for ours, theirs, true in zip(found, run(eager, torch.bfloat16), exact, strict=True):
        error, allowed = ((value.double() - true).abs().max() for value in (ours, theirs))
        assert error <= 2 * allowed + 1e-3


def test_operators_keep_torch_librarys_contract(operators):
    x, weight = torch.randn(3, 16).bfloat16(), torch.randn(16).bfloat16()
    differentiable = x.clone().requires_grad_(), weight.clone().requires_grad_(), 1e-5
    torch.library.opcheck(operators.rms_norm.default, differentiable)
    rstd = torch.ones(3)
    torch.library.opcheck(operators.rms_norm_backward.default, (x, x, weight, rstd, 2))
    lists = tensors([9, (2, 8)])
    torch.library.opcheck(operators.adamw.default, (*lists, 0.1, 0.9, 0.99, 1e-8, 0.0, 1, 0))


def test_bad_arguments_are_refused_by_name(operators):
    x, weight = torch.randn(3, 16).bfloat16(), torch.randn(16).bfloat16()
    weights, grads, means, squares = tensors([16])
    for call, says in (
        (lambda: op.rms_norm(x.float(), weight, 1e-5), "x has another dtype"),
        (lambda: op.rms_norm(x[:, :12].contiguous(), weight[:12].contiguous(), 1e-5), "multiple of 8"),
        (lambda: op.rms_norm(x.T, weight, 1e-5), "x must be contiguous"),
        (lambda: op.rms_norm(x, weight[:8], 1e-5), "weight has 8 elements, expected 16"),
        (lambda: op.adamw(weights, grads, means, squares, **RATES, step=0), "step is 0"),
        (lambda: op.adamw(weights, grads[:0], means, squares, **RATES, step=1), "lists of the same length"),
        (lambda: op.adamw(weights, means, means, squares, **RATES, step=1), "gradient has another dtype"),
        (lambda: op.adamw(*([x[0][1:]] for x in (weights, grads, means, squares)), **RATES, step=1),
         "multiple of 16 bytes"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=says):
            call()


def test_the_optimizer_takes_the_definition_where_there_is_no_gpu():
    weight = torch.nn.Parameter(torch.ones(64, 64).bfloat16())
    optimizer = StochasticAdamW([weight], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for _ in range(20):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert float(weight.detach().float().mean()) == pytest.approx(1 - 20e-3, abs=5e-4)
    assert optimizer.state[weight]["exp_avg"].dtype == torch.float32
    with pytest.raises(ValueError, match=r"a weight is torch\.float32"):
        StochasticAdamW([torch.nn.Parameter(torch.ones(2))], lr=1e-3, betas=(0.9, 0.95), eps=1e-8)


def test_what_is_missing_to_compile_is_named(monkeypatch):
    monkeypatch.setattr(build, "nvcc", lambda: None)
    with pytest.raises(MissingDependency, match="nvcc is not here"):
        build.build("cuda", "sm_90")
    with pytest.raises(DistllmError, match="g\\+\\+ failed"):
        build.run_compiler([shutil.which("g++"), "--no-such-option"])


def test_no_access_leaves_a_tensor(tmp_path):
    program = tmp_path / "sanitized"
    flags = ["-std=c++20", "-g", "-O1", "-ffp-contract=off", "-Wno-unknown-pragmas"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    build.run_compiler([shutil.which("g++"), *flags, "-o", str(program), str(HERE / "cuda_sanitized.cc")])
    done = subprocess.run([program], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "no access outside a tensor\n"


def test_the_table_of_compiled_kernels_is_of_these_sources():
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    assert table["source"] == build.source_digest(), "compile again and explain the difference: make gate"
    assert {row["arch"] for row in table["rows"]} == {"sm_80", "sm_90a", "sm_100a", "sm_120a"}
    assert len(table["rows"]) == 12
    for row in table["rows"]:
        assert row["spills"] == 0, row
        assert row["registers"] <= 255, row


@needs_nvcc
def test_nvcc_compiles_one_architecture_to_what_the_table_says(tmp_path):
    rows = json.loads(TABLE.read_text(encoding="utf-8"))["rows"]
    found = compile_kernels("sm_90a", tmp_path)
    assert found == [row for row in rows if row["arch"] == "sm_90a"]


@needs_nvcc
def test_the_library_of_nvcc_loads_into_this_torch_and_registers_for_cuda(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = build.build("cuda", "sm_90")
    lines = "import sys, torch; torch.ops.load_library(sys.argv[1]); "
    lines += "print(torch._C._dispatch_dump('distllm_cuda::adamw'))"
    import sys

    done = subprocess.run([sys.executable, "-c", lines, library], capture_output=True, text=True, check=True)
    assert re.search(r"^CUDA: registered", done.stdout, re.MULTILINE)
