"""The measured speed of matrix products on this device, to which the speed of a step is compared."""

from __future__ import annotations

import time

import torch

_SIZE = {"cpu": 1024, "cuda": 8192}


def measure_matmul_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Return the FLOP/s of the fastest of the square products done in about ``seconds``.

    Ranks that share a machine must measure at the same time, or each measures the whole machine.
    """
    size = _SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.mm(a, b)  # warm up: threads start, the library picks its kernel
    fastest, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline or fastest == float("inf"):
        _synchronize(device)
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        _synchronize(device)
        fastest = min(fastest, time.perf_counter() - started)
    return 2.0 * size**3 / fastest


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
