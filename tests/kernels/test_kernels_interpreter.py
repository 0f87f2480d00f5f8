"""The canary: the cured interpreter computes what the hardware would, and the sanitizer sees what it must."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from interp import rounding
from interp.sanitizer import Sanitizer


@triton.jit
def product_kernel(A, B, C, N: tl.constexpr, PRECISION: tl.constexpr):
    offsets = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    product = tl.dot(tl.load(A + offsets), tl.load(B + offsets), input_precision=PRECISION)
    tl.store(C + offsets, product)


@triton.jit
def cast_kernel(X, Y, N: tl.constexpr):
    offsets = tl.arange(0, N)
    tl.store(Y + offsets, tl.load(X + offsets).to(Y.dtype.element_ty))


@triton.jit
def add_kernel(X, Y, Z, n, N: tl.constexpr, STEP: tl.constexpr):
    offsets = tl.program_id(0) * STEP + tl.arange(0, N)
    mask = offsets < n
    tl.store(Z + offsets, tl.load(X + offsets, mask=mask) + tl.load(Y + offsets, mask=mask), mask=mask)


def draw(*size, dtype=torch.float32):
    return torch.randn(size, generator=torch.Generator().manual_seed(3)).to(dtype)


def product(a, b, precision="ieee"):
    out = torch.empty(a.shape, dtype=torch.float32)
    product_kernel[(1,)](a, b, out, N=len(a), PRECISION=precision)
    return out


def test_bf16_products_are_products_of_numbers():
    a, b = draw(32, 32, dtype=torch.bfloat16), draw(32, 32, dtype=torch.bfloat16)
    assert (product(a, b).double() - a.double() @ b.double()).abs().max() < 1e-4


def test_the_stock_interpreter_multiplies_bit_patterns():
    """When this fails, Triton has learned bf16: `interp/rounding.py` may go."""
    a = draw(32, 32, dtype=torch.bfloat16)
    rounding.remove()
    try:
        wrong = product(a, a)
    finally:
        rounding.install()
    assert not (wrong.double() - a.double() @ a.double()).abs().max() < 1e3


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str
)
def test_rounding_is_torchs(dtype):
    x = draw(4096) * 16
    out = torch.empty(4096, dtype=dtype)
    cast_kernel[(1,)](x, out, N=4096)
    assert torch.equal(out.float(), x.to(dtype).float())


def test_bf16_sums_round_once():
    x, y = draw(64, dtype=torch.bfloat16), draw(64, dtype=torch.bfloat16).flip(0)
    out = torch.empty_like(x)
    add_kernel[(1,)](x, y, out, 64, N=64, STEP=64)
    assert torch.equal(out, x + y)


def test_tf32_is_rounded_only_where_asked_for():
    a, exact = draw(32, 32), draw(32, 32).double() @ draw(32, 32).double()
    rounding.install(tf32=True)
    try:
        errors = [(product(a, a, precision).double() - exact).abs().max() for precision in ("ieee", "tf32")]
    finally:
        rounding.install()
    assert errors[0] < 1e-5 < 1e-3 < errors[1]


def test_uninitialised_outputs_are_poisoned():
    assert torch.empty(4).isnan().all()


def test_sanitizer_passes_a_correct_kernel_in_any_order():
    x, out = draw(100), torch.empty(100)
    with Sanitizer(order=1) as watched:
        add_kernel[(7,)](x, x, out, 100, N=16, STEP=16)
    assert torch.equal(out, x + x)
    assert (watched.launches, watched.loads, watched.stores) == (1, 14, 7)


def test_sanitizer_finds_an_address_past_the_end():
    x, out = draw(100), torch.empty(100)
    with (
        Sanitizer(),
        pytest.raises(triton.runtime.errors.InterpreterError, match="12 of 16 addresses of a load"),
    ):
        add_kernel[(7,)](x, x, out, 112, N=16, STEP=16)


def test_sanitizer_finds_two_writers_of_one_element():
    x, out = draw(100), torch.empty(100)
    with Sanitizer(), pytest.raises(triton.runtime.errors.InterpreterError, match="race: store by program 1"):
        add_kernel[(7,)](x, x, out, 100, N=16, STEP=15)


def test_sanitizer_finds_a_reader_of_what_another_writes():
    x = draw(100)
    with Sanitizer(), pytest.raises(triton.runtime.errors.InterpreterError, match="race: load by program 1"):
        add_kernel[(7,)](x, x, x, 100, N=16, STEP=15)


def test_program_order_is_shuffled_by_the_seed():
    seen = []
    original = np.random.default_rng
    assert list(original(1).permutation(7)) != list(range(7))
    for order in (None, 1):
        with Sanitizer(order=order) as watched:
            record = watched._stock["set_grid_idx"]
            watched._stock["set_grid_idx"] = lambda builder, x, y, z, record=record: (
                seen.append(x), record(builder, x, y, z),
            )  # fmt: skip
            add_kernel[(7,)](draw(100), draw(100), torch.empty(100), 100, N=16, STEP=16)
            watched._stock["set_grid_idx"] = record
    assert seen[:7] == list(range(7))
    assert sorted(seen[7:]) == seen[:7] != seen[7:]
