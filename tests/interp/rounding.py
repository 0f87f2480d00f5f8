"""Triton's interpreter with the number formats of the hardware.

Stock Triton 3.7 interprets bf16 as the 16-bit integers that hold it: products are of bit patterns, and
fp32 is cut to bf16 instead of rounded. `install` makes bf16 and fp8 arithmetic happen in fp32 and
round to nearest even, as on the device. It replaces methods of private classes of one Triton version;
`tests/kernels/test_kernels_interpreter.py` shows that it still does its work.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

Builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
FP8 = {tl.float8e5: torch.float8_e5m2, tl.float8e4nv: torch.float8_e4m3fn}
COMPARISONS = {np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal}
_stock = {}
_tf32 = [False]


def bf16_to_fp32(bits):
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)


def fp32_to_bf16(values):
    """Round to nearest even: what the device's cvt.rn.bf16.f32 does."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def to_tf32(values):
    """Round the mantissa to 10 bits."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def is_low(dtype):
    """Whether the interpreter holds this format as an integer of its width."""
    return dtype == tl.bfloat16 or dtype in FP8


def widen(data, dtype):
    if dtype == tl.bfloat16:
        return bf16_to_fp32(data)
    if dtype in FP8:
        return torch.from_numpy(np.ascontiguousarray(data)).view(FP8[dtype]).float().numpy()
    return data


def narrow(data, dtype):
    if dtype == tl.bfloat16:
        return fp32_to_bf16(data)
    if dtype in FP8:
        return (
            torch.from_numpy(np.ascontiguousarray(data, np.float32)).to(FP8[dtype]).view(torch.uint8).numpy()
        )
    return data.astype(interpreter._get_np_dtype(dtype))


def _cast(builder, source, target):
    old, new = source.dtype.scalar, target.scalar
    if not (is_low(old) or is_low(new)):
        return _stock["cast_impl"](builder, source, target)
    values = widen(source.data, old)
    if is_low(new):
        return Handle(narrow(values.astype(np.float32), new), new)
    return Handle(values.astype(interpreter._get_np_dtype(new)), new)


def _float_to_float(builder, source, target, rounding):
    if rounding not in (None, interpreter._ir.ROUNDING_MODE.RTNE):
        return _stock["create_fp_to_fp"](builder, source, target, rounding)
    return _cast(builder, source, target)


def _in_fp32(name):
    def operation(builder, *arguments):
        *handles, function = arguments
        if not any(is_low(handle.dtype.scalar) for handle in handles):
            return _stock[name](builder, *arguments)
        result = function(*(widen(handle.data, handle.dtype.scalar) for handle in handles))
        if function in COMPARISONS:
            return Handle(result, tl.int1)
        dtype = handles[-1].dtype.scalar
        return Handle(narrow(result, dtype), dtype)

    return operation


def _fma(builder, x, y, z):
    dtype = z.dtype.scalar
    if not is_low(dtype):
        return _stock["create_fma"](builder, x, y, z)
    return Handle(narrow(widen(x.data, dtype) * widen(y.data, dtype) + widen(z.data, dtype), dtype), dtype)


def _rsqrt(builder, x):
    dtype = x.dtype.scalar
    if not is_low(dtype):
        return _stock["create_rsqrt"](builder, x)
    return Handle(narrow(1 / np.sqrt(widen(x.data, dtype)), dtype), dtype)


def _dot(builder, a, b, total, precision, _max_imprecise):
    x, y = widen(a.data, a.dtype.scalar), widen(b.data, b.dtype.scalar)
    if _tf32[0] and a.dtype.scalar == tl.float32 and str(precision).endswith("TF32"):
        x, y = to_tf32(x), to_tf32(y)
    accumulate = total.data.dtype
    return Handle(np.matmul(x.astype(accumulate), y.astype(accumulate)) + total.data, total.dtype.scalar)


def install(*, tf32=False):
    """Cure the interpreter for the rest of this process; ``tf32`` rounds what asks for tf32."""
    _tf32[0] = tf32
    if _stock:
        return
    cures = {
        "cast_impl": _cast, "create_fp_to_fp": _float_to_float, "create_fma": _fma, "create_rsqrt": _rsqrt,
        "create_dot": _dot, "binary_op": _in_fp32("binary_op"), "ternary_op": _in_fp32("ternary_op"),
        "unary_op": _in_fp32("unary_op"),
    }  # fmt: skip
    for name, cure in cures.items():
        _stock[name] = getattr(Builder, name)
        setattr(Builder, name, cure)


def remove():
    """Put the stock interpreter back."""
    for name, method in _stock.items():
        setattr(Builder, name, method)
    _stock.clear()
