"""The environment variables that change how ranks compute and communicate, in one line of a job's log."""

from __future__ import annotations

from collections.abc import Mapping

from distllm.redact import redacted

_RELEVANT = (
    "CUDA_", "DS_", "FI_", "GLOO_", "MASTER_", "MKL_", "NCCL_", "OMP_", "OFI_", "PYTHON", "PYTORCH_",
    "RDMAV_", "SLURM_CPUS", "TORCH_", "UCX_",
)  # fmt: skip
"""Prefixes of variables that network fabrics, backends and Python read."""


def surroundings(env: Mapping[str, str]) -> str:
    """Return the relevant variables as ``NAME=value``, without secrets."""
    relevant = {name: env[name] for name in sorted(env) if name.startswith(_RELEVANT)}
    return " ".join(f"{name}={value}" for name, value in redacted(relevant).items())
