"""Forward and backward over a rank's micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distllm.data.batch import Batch
from distllm.dist.engine import Engine
from distllm.dist.topology import Topology
from distllm.heartbeat import HEARTBEAT
from distllm.seeds import derive_seed
from distllm.tasks.base import Task
from distllm.train.pace import OwnTime


def forward_and_backward(
    task: Task,
    engine: Engine,
    batches: Sequence[Batch],
    weight: float,
    topology: Topology,
    seed: int,
    own_time: OwnTime,
) -> Tensor:
    """Accumulate the gradients of this rank's micro-batches. Collective.

    Args:
        task: the objective.
        engine: holds the model; its backward pass sums over ranks.
        batches: this rank's part of the global batch.
        weight: loss targets of the whole global batch.
        topology: this rank's place.
        seed: seed of dropout, which is a function of it and of the samples, so that a resumed run draws the
            same numbers; ranks that share rows draw separately for their own positions.
        own_time: measures the time in which this rank does not wait for others.

    Returns:
        The sum of the losses of ``batches``, a scalar on the rank's device.
    """
    HEARTBEAT.phase("compute")
    _seed_noise(seed, batches[0], topology)
    task.begin(engine.model, batches, topology)
    engine.expect(len(batches), int(batches[0].sample_ids_B[0]))
    loss_sum = torch.zeros((), device=topology.device)
    for batch in batches:
        _seed_noise(seed, batch, topology)
        with own_time.measured():
            batch_loss = task.loss_sum(engine.model, batch)
        engine.backward(batch_loss / (max(1, task.weight(batch)) if engine.by_row else weight))
        loss_sum += batch_loss.detach()
    return loss_sum


def _seed_noise(seed: int, batch: Batch, topology: Topology) -> None:
    part = [topology.sequence_rank] if topology.sequence_ranks > 1 else []
    torch.manual_seed(derive_seed(seed, "noise", int(batch.sample_ids_B[0]), *part))
