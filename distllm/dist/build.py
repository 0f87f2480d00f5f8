"""Building the engine that a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distllm.dist.engine import Engine
from distllm.dist.expert_engine import ExpertEngine, OwnExperts
from distllm.dist.local import LocalEngine
from distllm.dist.memory import keep_freed_memory
from distllm.dist.private import PrivateEngine
from distllm.dist.topology import Topology

OptimizerFactory = Callable[[nn.Module], torch.optim.Optimizer]


def build_engine(
    name: str,
    model: nn.Module,
    make_optimizer: OptimizerFactory,
    *,
    settings: Mapping[str, Any],
    topology: Topology,
    timeout_seconds: float,
    experts: OwnExperts | None = None,
    offload_dir: Path | None = None,
    private: Mapping[str, Any] | None = None,
) -> Engine:
    """Build the engine ``name`` around an initialised model. Collective.

    Args:
        name: ``"deepspeed"`` or ``"local"``.
        model: full fp32 weights, the same on every rank; moved to the rank's device.
        make_optimizer: builds an AdamW over the model's parameters (groups, betas, decay).
        settings: the document of `config.engine.deepspeed_json`; both engines read it.
        topology: this rank's place; its process group must exist.
        timeout_seconds: longest wait for another rank inside DeepSpeed's own groups.
        experts: the experts that this rank trains with expert parallelism; they are not parameters of ``model``.
        offload_dir: directory of the files for offloaded state; None: it stays in main memory.
        private: further arguments of `PrivateEngine`, for a differentially private run.
    """
    if topology.device.type == "cpu":
        keep_freed_memory()
    if private is not None:
        model.to(topology.device)
        return PrivateEngine(model, make_optimizer(model), settings, topology, **private)
    rest = _engine(name, model, make_optimizer, settings, topology, timeout_seconds, offload_dir)
    if experts is None:
        return rest
    scale = float(topology.world_size) if name == "deepspeed" else 1.0
    return ExpertEngine(rest, experts.weights, make_optimizer, settings, experts.group, topology, scale)


def _engine(
    name: str,
    model: nn.Module,
    make_optimizer: OptimizerFactory,
    settings: Mapping[str, Any],
    topology: Topology,
    timeout_seconds: float,
    offload_dir: Path | None,
) -> Engine:
    model.to(topology.device)
    if name == "local":
        if settings["bf16"]["enabled"]:
            model.to(torch.bfloat16)  # without an fp32 copy the optimizer has to round (optim=adamw_bf16)
        return LocalEngine(model, make_optimizer(model), settings, topology)
    if name == "deepspeed":
        from distllm.dist.deepspeed import ZeroEngine  # DeepSpeed takes seconds to import

        return ZeroEngine(model, make_optimizer(model), settings, topology, timeout_seconds, offload_dir)
    raise ValueError(f"unknown engine {name!r}")
