"""What the kernels should take on a GPU: from their arithmetic, their bytes and the compiler's registers.

``PYTHONPATH=tests python -m gate.roofline`` prints the tables of docs/kernels.md. An upper bound of speed
lets all units of a multiprocessor work at the same time; a lower one lets them take turns, as they do in a
program that waits for its own products. Nothing here has been measured by us.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import torch

from distllm.kernels.attention.tiles import tile
from gate.rules import Measured, Row, load_table

REGISTERS = 65536  # of a multiprocessor, handed out to warps by 256
OVERHEAD = 1024  # bytes of shared memory that every program takes besides its own
STREAM = 0.9  # share of a memory's peak that copies reach
LATENCY = 700e-9  # seconds from a load to its data


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device: datasheet figures, and what products were measured to reach.

    ``matmul`` is the FLOP/s that bf16 products reach (ml-engineering, compute/accelerator; where that has no
    figure, 0.8 of the peak); ``lanes`` are the fp32 operations of a multiprocessor per cycle, ``special`` its
    exponentials, ``warps`` its residents.
    """

    name: str
    arch: int
    peak: float
    matmul: float
    bandwidth: float
    processors: int
    clock: float
    lanes: int
    shared: int
    warps: int
    special: int = 16


GPUS = (
    Gpu("A100 SXM", 80, 312e12, 271e12, 2.039e12, 108, 1.41e9, 64, 167936, 64),
    Gpu("H100 SXM", 90, 989.4e12, 794.5e12, 3.35e12, 132, 1.755e9, 128, 233472, 64),
    Gpu("B200 SXM", 100, 2250e12, 1745e12, 8.0e12, 148, 1.85e9, 128, 233472, 64),
    Gpu("RTX 5090", 120, 209.5e12, 0.8 * 209.5e12, 1.792e12, 170, 2.41e9, 128, 102400, 48),
)


def gpu_named(device: str) -> Gpu | None:
    """Return the entry whose model, such as H100 or RTX 5090, is part of a device's name."""
    return next((gpu for gpu in GPUS if gpu.name.removesuffix(" SXM") in device), None)


@dataclass(frozen=True, slots=True)
class Work:
    """What one launch does: programs, fp32 products and sums, exponentials, bytes to and from memory.

    ``matrix`` are operations of matrix products, ``lanes`` those of single numbers.
    """

    programs: int
    matrix: float
    lanes: float
    special: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Predicted:
    """Seconds if all units overlap and if they take turns; programs a multiprocessor; the limit."""

    overlapped: float
    serial: float
    resident: int
    bound: str


def resident(kernel: Measured, gpu: Gpu) -> int:
    """Return how many programs of a kernel a multiprocessor holds at a time."""
    registers = math.ceil(kernel.registers * 32 / 256) * 256 * kernel.warps
    by_shared = gpu.shared // (kernel.shared + OVERHEAD)
    return min(REGISTERS // registers, by_shared, gpu.warps // kernel.warps, 32)


def predict(work: Work, kernel: Measured, gpu: Gpu) -> Predicted:
    """Return the time of a launch.

    Raises:
        ValueError: not one program fits a multiprocessor.
    """
    held = resident(kernel, gpu)
    if not held:
        raise ValueError(f"{kernel.kernel} does not fit a multiprocessor of {gpu.name}")
    slots = gpu.processors * held
    waves = math.ceil(work.programs / slots) * slots / work.programs  # the last wave may leave slots empty
    # Little's law: what is on its way must cover the latency. A warp asks for 16 bytes a lane at a time.
    in_flight = held * kernel.warps * 32 * 16 * gpu.processors
    reach = min(STREAM, in_flight / (gpu.bandwidth * LATENCY))
    cycles = gpu.processors * gpu.clock
    parts = {
        "matrix products": waves * work.matrix / gpu.matmul,
        "arithmetic": waves * work.lanes / (cycles * gpu.lanes),
        "exponentials": waves * work.special / (cycles * gpu.special),
    }
    memory = work.bytes / (gpu.bandwidth * reach)
    bound = max({**parts, "memory": memory}.items(), key=lambda part: part[1])[0]
    return Predicted(max(*parts.values(), memory), max(sum(parts.values()), memory), held, bound)


# Operations of one score besides its products: scale and mask, maximum, difference, sum, rounding; in the
# backward pass the probability's gradient instead of the maximum.
_PER_SCORE = 7
_PRODUCTS = {"forward_kernel": 2, "key_grads_kernel": 4, "query_grads_kernel": 3}


def attention_work(name: str, gpu: Gpu, head_dim: int, length: int, heads: int, batch: int) -> Work:
    """Return the work of one causal attention kernel in bf16, with as many key heads as query heads."""
    kind = name.removesuffix("_kernel")
    cut = tile(kind, gpu.arch, head_dim, torch.bfloat16)  # type: ignore[arg-type]  # a name cut from the table's
    rows, columns = (cut.keys, cut.queries) if kind == "key_grads" else (cut.queries, cut.keys)
    blocks = sum(math.ceil((row + 1) * rows / columns) for row in range(math.ceil(length / rows)))
    scores = blocks * rows * columns * heads * batch
    tensors = {"forward": 4, "key_grads": 6, "query_grads": 5}[kind]
    return Work(
        programs=math.ceil(length / rows) * heads * batch,
        matrix=2.0 * _PRODUCTS[name] * scores * head_dim,
        lanes=float(_PER_SCORE * scores),
        special=float(scores),
        bytes=2.0 * tensors * length * heads * batch * head_dim,
    )


def attention_times(gpu: Gpu, head_dim: int, length: int, heads: int, batch: int) -> dict[str, Predicted]:
    """Return the predicted time of each attention kernel."""
    found = {
        row.measured.kernel: row.measured for row in _rows(gpu, f"attention {head_dim} bf16, causal, packed")
    }
    return {
        name: predict(attention_work(name, gpu, head_dim, length, heads, batch), found[name], gpu)
        for name in _PRODUCTS
    }


def useful_flops(head_dim: int, length: int, heads: int, batch: int) -> float:
    """Return the operations of a causal forward pass by the convention of the published figures."""
    return 4.0 * length * length * head_dim * heads * batch / 2


def _rows(gpu: Gpu, case: str) -> list[Row]:
    return [row for row in load_table() if row.case == case and row.measured.arch == gpu.arch]


# Forward passes of others by their authors or by those named: device, head size, causal, TFLOP/s.
PUBLISHED = (
    ("H100 SXM", 64, {"Triton": 403, "FA2": 324, "cuDNN": 413, "FA3": 497}, "FA3 chart, 16k"),
    ("H100 SXM", 128, {"Triton": 395, "FA2": 370, "cuDNN": 595, "FA3": 648}, "FA3 chart, 16k"),
    ("B200 SXM", 128, {"Triton": 594, "cuDNN": 1235, "FA4": 1605}, "FA4 abstract: 2.7 x Triton, 1.3 x cuDNN"),
)


def _attention_table() -> list[str]:
    lines = [
        "| GPU, head size | programs a multiprocessor | limit | predicted forward, TFLOP/s | share of peak "
        "| forward + backward, TFLOP/s | published forward, TFLOP/s |",
        "|---|---|---|---|---|---|---|",
    ]
    shape = (8192, 16, 2)
    for gpu in GPUS:
        for head_dim in (64, 128):
            times, flops = attention_times(gpu, head_dim, *shape), useful_flops(head_dim, *shape)
            forward = times["forward_kernel"]
            low, high = flops / forward.serial / 1e12, flops / forward.overlapped / 1e12
            both = [3.5 * flops / sum(getattr(time, bound) for time in times.values()) / 1e12
                    for bound in ("serial", "overlapped")]  # fmt: skip
            known = [figures for name, dim, figures, _ in PUBLISHED if (name, dim) == (gpu.name, head_dim)]
            text = (
                ", ".join(f"{name} {figure}" for figures in known for name, figure in figures.items()) or "-"
            )
            lines.append(
                f"| {gpu.name}, {head_dim} | {forward.resident} | {forward.bound} | {low:.0f} - {high:.0f} "
                f"| {1e14 * low / gpu.peak:.0f} - {1e14 * high / gpu.peak:.0f} % "
                f"| {both[0]:.0f} - {both[1]:.0f} | {text} |"
            )
    return lines


def pointwise_work(case: str, kernel: str) -> Work | None:
    """Return the work of a pointwise kernel on 16384 positions in bf16; None for one with no entry here."""
    rows, size = 16384, int(case.split()[1])
    heads = 32
    entries = {
        # kernel: programs, tensors read and written, numbers of a position, operations a number, exponentials
        "norm_forward_kernel": (rows, 4, size, 8, 0),  # with the residual: two in, two out
        "norm_backward_kernel": (528, 4, size, 16, 0),
        "rotary_kernel": (rows * heads // 16, 2, heads * size, 6, 0),
        "norm_rotary_backward_kernel": (528 * heads // 16, 3, heads * size, 16, 0),
        "gated_forward_kernel": (rows * math.ceil(size / 1024), 3, size, 8, 1),
        "gated_backward_kernel": (rows * math.ceil(size / 1024), 5, size, 14, 1),
        "cross_entropy_forward_kernel": (rows, 1, size, 8, 2),
        "cross_entropy_backward_kernel": (rows * math.ceil(size / 4096), 2, size, 10, 2),
    }
    if kernel not in entries:
        return None
    programs, tensors, numbers, lanes, special = entries[kernel]
    total = float(rows * numbers)
    return Work(programs, 0.0, lanes * total, special * total, 2.0 * tensors * total)


def _pointwise_table() -> list[str]:
    lines = ["| kernel | " + " | ".join(gpu.name for gpu in GPUS) + " |", "|---" * (len(GPUS) + 1) + "|"]
    cases = ("norms 4096 bf16", "rope 128 bf16", "gated 11008 bf16", "cross-entropy 32768 bf16")
    for case in cases:
        for kernel in sorted({row.measured.kernel for row in load_table() if row.case == case}):
            work = pointwise_work(case, kernel)
            if work is None:
                continue
            cells = []
            for gpu in GPUS:
                fits = [row.measured for row in _rows(gpu, case) if row.measured.kernel == kernel]
                most = max(fits, key=lambda measured: measured.registers)  # of its variants the hungriest
                time = predict(work, most, gpu)
                low, high = f"{1e6 * time.overlapped:.0f}", f"{1e6 * time.serial:.0f}"
                cells.append(f"{low if low == high else f'{low} - {high}'} µs, {time.bound}")
            lines.append(
                f"| {kernel.removesuffix('_kernel')}, {case.removesuffix(' bf16')} | {' | '.join(cells)} |"
            )
    return lines


def main() -> int:
    """Print the tables."""
    print("\n".join([*_attention_table(), "", *_pointwise_table()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
