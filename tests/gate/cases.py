"""What is compiled: every kernel, by the launchers that ship, for sizes and features that stand for all.

A case is complete in what the compiler sees: head width, dtype, features, alignment. Lengths are
run-time values and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distllm.kernels.attention.launch import Features, launch_backward, launch_forward
from distllm.kernels.attention.tiles import HEAD_DIMS, Kernel, padded, tile
from distllm.kernels.device import ARCHITECTURES
from distllm.kernels.pointwise import cross_entropy, gated, norm, rotary

_LENGTH = 4096
_FEATURES: dict[str, dict[str, Any]] = {
    "causal, packed": {},
    "every feature": {"window": 1000, "softcap": 30.0, "sinks": True, "slopes": True},
    "full": {"causal": False, "packed": False},
    "heads apart": {"apart": True},  # which no descriptor of tiles fits
}
_STREAMING: tuple[Kernel, ...] = ("forward", "query_grads")


@dataclass(frozen=True)
class Case:
    """One set of launches.

    Attributes:
        room: attention or pointwise.
        name: what is compiled, unique in the table.
        arch: the architecture.
        matrix: the kernels multiply matrices of 16-bit numbers.
        streams: the kernels, without their ending, that load tiles by the tensor memory accelerator.
        launch: starts the kernels on meta tensors.
    """

    room: str
    name: str
    arch: int
    matrix: bool
    launch: Callable[[], Any]
    streams: frozenset[Kernel] = frozenset()


def shipped() -> Iterator[Case]:
    """Yield every configuration that ships: architectures, head widths and dtypes, by sets of features.

    A feature is one branch of a kernel: a set of few and a set of all stand for the combinations, in the
    dtype of training; the other dtypes have the first. What loads by descriptors is compiled without, too.
    """
    for arch in ARCHITECTURES:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            names = ["causal, packed"] + ["every feature"] * (dtype == torch.bfloat16)
            for head_dim in HEAD_DIMS:
                cases = [attention_case(arch, head_dim, dtype, name) for name in names]
                yield from cases
                if dtype == torch.bfloat16 and cases[0].streams:
                    yield attention_case(arch, head_dim, dtype, "heads apart")
            yield from pointwise_cases(arch, dtype)
        yield attention_case(arch, 128, torch.bfloat16, "full")


def sample() -> Case:
    """Return what continuous integration compiles again."""
    return attention_case(90, 128, torch.bfloat16, "causal, packed")


def attention_case(arch: int, head_dim: int, dtype: torch.dtype, features: str) -> Case:
    """Return the forward and backward launches of one configuration."""
    chosen: dict[str, Any] = {
        "causal": True,
        "window": 0,
        "softcap": 0.0,
        "packed": True,
        "sinks": False,
        "slopes": False,
        "apart": False,
    }
    chosen |= _FEATURES[features]
    packed, sinks, slopes, apart = (chosen.pop(name) for name in ("packed", "sinks", "slopes", "apart"))

    def launch() -> None:
        q_BTHD, k_BSKD, v_BSKD, grad_BTHD = (
            _meta(1, _LENGTH, heads, head_dim, dtype=dtype) for heads in (16, 4, 4, 16)
        )
        if apart:
            k_BSKD, v_BSKD = (
                _meta(1, _LENGTH, 4, 2 * head_dim, dtype=dtype)[..., :head_dim] for _ in range(2)
            )
        borders = (_meta(9, dtype=torch.int32), _meta(9, dtype=torch.int32)) if packed else (None, None)
        sinks_H, slopes_H = (_meta(16, dtype=torch.float32) if wanted else None for wanted in (sinks, slopes))
        resolved = Features(_LENGTH, _LENGTH, scale=head_dim**-0.5, **chosen)
        out_BTHD, lse_BHT = launch_forward(q_BTHD, k_BSKD, v_BSKD, borders, sinks_H, slopes_H, resolved)
        grads, outputs = (grad_BTHD, torch.empty_like(lse_BHT)), (out_BTHD, lse_BHT)
        launch_backward(grads, q_BTHD, k_BSKD, v_BSKD, outputs, borders, slopes_H, resolved)

    name = f"attention {head_dim} {_short(dtype)}, {features}"
    fits = head_dim == padded(head_dim) and not apart and not chosen["window"] and arch in ARCHITECTURES
    streams = [kernel for kernel in _STREAMING if fits and tile(kernel, arch, head_dim, dtype).streams]
    return Case("attention", name, arch, dtype.itemsize == 2, launch, frozenset(streams))


def pointwise_cases(arch: int, dtype: torch.dtype) -> Iterator[Case]:
    """Yield the pointwise kernels at a width that fills their largest block, and at a usual one."""
    for channels in sorted({4096, norm.max_channels(dtype)}):
        yield _pointwise(f"norms {channels} {_short(dtype)}", arch, _norms, channels, dtype)
    yield _pointwise(f"rope 128 {_short(dtype)}", arch, _rotary, 128, dtype)
    yield _pointwise(f"gated 11008 {_short(dtype)}", arch, _gated, 11008, dtype)
    yield _pointwise(f"cross-entropy 32768 {_short(dtype)}", arch, _cross_entropy, 32768, dtype)


def _pointwise(
    name: str, arch: int, function: Callable[[int, torch.dtype], None], size: int, dtype: torch.dtype
) -> Case:
    return Case("pointwise", name, arch, False, lambda: function(size, dtype))


def _norms(channels: int, dtype: torch.dtype) -> None:
    x_NC, residual_NC = (_meta(_LENGTH, channels, dtype=dtype) for _ in range(2))
    weight_C, bias_C = (_meta(channels, dtype=dtype) for _ in range(2))
    _, sum_NC, mean_N, rstd_N = norm.launch_norm(x_NC, residual_NC, weight_C, None, 1e-5, centered=False)
    norm.launch_norm_backward((x_NC, residual_NC), sum_NC, weight_C, (mean_N, rstd_N), has_bias=False)
    _, _, mean_N, rstd_N = norm.launch_norm(x_NC, None, weight_C, bias_C, 1e-5, centered=True)
    norm.launch_norm_backward((x_NC, None), x_NC, weight_C, (mean_N, rstd_N), has_bias=True)


def _rotary(head_dim: int, dtype: torch.dtype) -> None:
    x_NHD, table_Nd = _meta(_LENGTH, 32, head_dim, dtype=dtype), _meta(_LENGTH, head_dim // 2, dtype=dtype)
    weight_D = _meta(head_dim, dtype=dtype)
    rotary.launch_rotary(x_NHD, table_Nd, table_Nd, None, 1e-6, inverse=True)
    _, rstd_NH = rotary.launch_rotary(x_NHD, table_Nd, table_Nd, weight_D, 1e-6, inverse=False)
    rotary.launch_norm_rotary_backward(x_NHD, x_NHD, table_Nd, table_Nd, weight_D, rstd_NH)


def _gated(channels: int, dtype: torch.dtype) -> None:
    gate_NI, up_NI = (_meta(_LENGTH, channels, dtype=dtype) for _ in range(2))
    for activation in gated.ACTIVATIONS:
        gated.launch_gated(gate_NI, up_NI, activation)
        gated.launch_gated_backward(gate_NI, gate_NI, up_NI, activation)


def _cross_entropy(vocabulary: int, dtype: torch.dtype) -> None:
    hidden_NC, weight_VC = _meta(64, 128, dtype=dtype), _meta(vocabulary, 128, dtype=dtype)
    terms = cross_entropy.LossTerms(-100, 0.1, 1e-4, 30.0)
    targets_N, grad_N = _meta(64, dtype=torch.int64), _meta(64, dtype=torch.float32)
    _, *statistics = cross_entropy.launch_cross_entropy(hidden_NC, weight_VC, targets_N, terms)
    peak_N, log_total_N = statistics
    cross_entropy.launch_cross_entropy_backward(
        grad_N, hidden_NC, weight_VC, targets_N, (peak_N, log_total_N), terms
    )


def _meta(*size: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


def _short(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
