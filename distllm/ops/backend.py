"""Which kernels the operations run on, chosen once per process, and why.

The order on a CUDA device with ``engine.kernels=triton``: distllm's Triton kernel where it computes what
is asked, else torch. Without it, and on every other device: torch, which picks among its own fused
implementations. What the Triton attention cannot compute is refused, not computed by something slower.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata, util
from typing import Literal

import torch
from torch import Tensor

from distllm.errors import ConfigError, MissingDependency

Kernels = Literal["torch", "triton"]
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_chosen: list[Kernels] = ["torch"]


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """The kernels of this process, and why these."""

    name: Kernels
    reason: str


def use_kernels(name: Kernels, device: torch.device) -> KernelChoice:
    """Choose the kernels for the rest of this process.

    Raises:
        MissingDependency: triton is not installed.
        ConfigError: the device has no Triton kernels.
    """
    _chosen[0] = "torch"
    if name == "torch":
        return KernelChoice(
            name, "engine.kernels=torch: torch's fused operations, the choice for every device"
        )
    if util.find_spec("triton") is None:
        raise MissingDependency(
            "engine.kernels=triton needs the package triton",
            where="engine.kernels",
            remedy="pip install 'distllm[kernels]', or engine.kernels=torch",
        )
    if device.type == "cuda":
        from distllm.kernels.device import row_of_capability

        try:
            row = row_of_capability(torch.cuda.get_device_capability(device))
        except ValueError as error:
            raise ConfigError(str(error), where="engine.kernels", remedy="engine.kernels=torch") from error
        reason = f"engine.kernels=triton: launch parameters of sm_{row}, triton {metadata.version('triton')}"
    elif interpreted():
        reason = "engine.kernels=triton in Triton's interpreter (TRITON_INTERPRET=1): for tests"
    else:
        raise ConfigError(
            f"engine.kernels=triton needs a CUDA device, and this rank has {device.type}",
            where="engine.kernels",
            remedy="engine.kernels=torch",
        )
    _chosen[0] = "triton"
    return KernelChoice("triton", reason)


def interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_chosen() -> bool:
    """Whether this process uses the Triton kernels at all."""
    return _chosen[0] == "triton"


def triton_serves(x: Tensor) -> bool:
    """Whether the Triton kernels are in use and take a tensor like ``x``."""
    return triton_chosen() and x.dtype in _DTYPES
