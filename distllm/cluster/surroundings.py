"""What the environment tells libraries of a rank, in one line of a job's log."""

from __future__ import annotations

from collections.abc import Mapping

from distllm.redact import redacted

_TELLING = (
    "CUDA_", "DS_", "FI_", "GLOO_", "MASTER_", "MKL_", "NCCL_", "OMP_", "OFI_", "PYTHON", "PYTORCH_",
    "RDMAV_", "SLURM_CPUS", "TORCH_", "UCX_",
)  # fmt: skip
"""What fabrics, backends and Python listen to."""


def surroundings(env: Mapping[str, str]) -> str:
    """Return the variables that decide how ranks talk and compute, as ``NAME=value``, without secrets."""
    told = {name: env[name] for name in sorted(env) if name.startswith(_TELLING)}
    return " ".join(f"{name}={value}" for name, value in redacted(told).items())
