"""One rank of a training run: its threads, its process group, its signals, then the loop."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from distllm.cluster.lease import TOKEN_VARIABLE
from distllm.config.compose import Composition
from distllm.config.resolve import Resolved
from distllm.dist.topology import (
    Topology,
    destroy_process_group,
    init_process_group,
    set_extension_cache,
)
from distllm.train.build import open_run
from distllm.train.loop import train
from distllm.train.out_of_memory import memory_errors
from distllm.train.signals import StopRequest
from distllm.train.watchdog import die_with_launcher

_RECORDED_COLLECTIVES = "200"


def train_as_rank(composition: Composition, resolved: Resolved, *, allow_schedule: bool = False) -> None:
    """Train as one rank of a run, or as its only process if no launcher has started ranks.

    Args:
        composition: the configuration and where each value came from.
        resolved: its settled numbers.
        allow_schedule: continue even if the schedule differs from that of the checkpoint.

    Raises:
        DistllmError: see `distllm.train.build.open_run` and `distllm.train.loop.train`.
    """
    config = resolved.config
    stop = StopRequest()
    stop.install()
    if TOKEN_VARIABLE not in os.environ and "RANK" in os.environ:
        die_with_launcher()
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", _RECORDED_COLLECTIVES)
    torch.set_num_threads(resolved.threads_per_rank)
    set_extension_cache(Path(config.runs_dir) / ".torch_extensions")
    topology = replace(
        Topology.from_environment(device=config.cluster.device),
        sequence_ranks=config.engine.sequence_ranks,
        expert_ranks=config.engine.expert_ranks,
    )
    init_process_group(topology, config.cluster.timeout_seconds)
    try:
        with (
            open_run(composition, resolved, topology, stop, allow_schedule=allow_schedule) as run,
            memory_errors(resolved, run.state, topology, run.directory.path),
        ):
            train(run)
    finally:
        destroy_process_group()
