"""A run on one rank: everything that the training loop works with."""

from __future__ import annotations

from dataclasses import dataclass

from distllm.config.resolve import Resolved
from distllm.config.steps import StepSizes
from distllm.data.batch import Split
from distllm.data.stream import StepStream
from distllm.data.tokenizer import Tokenizer
from distllm.dist.engine import Engine
from distllm.dist.topology import Topology
from distllm.evaluate.canaries import CanaryWatch
from distllm.observe.sinks import Sink
from distllm.optim.schedule import LearningRate
from distllm.tasks.base import Task
from distllm.train.chain import Chain
from distllm.train.chronicle import Chronicle
from distllm.train.early_stopping import EarlyStopping
from distllm.train.guard import Guard
from distllm.train.pace import OwnTime, Pace
from distllm.train.privacy import PrivacyAccount
from distllm.train.replicas import ReplicaCheck
from distllm.train.run_directory import RunDirectory
from distllm.train.saving import Saves
from distllm.train.signals import StopRequest
from distllm.train.state import TrainState


@dataclass
class Run:
    """Built once, by `distllm.train.build`.

    Attributes:
        resolved: the configuration with every derived number.
        sizes: samples of each step.
        directory: where everything about the run is written.
        topology: this rank's place.
        task: the objective.
        engine: weights, gradients and optimizer.
        stream: this rank's micro-batches of any step.
        valid: what is evaluated on; None if nothing is.
        tokenizer: the dataset's.
        canaries: measures how far planted secrets were memorised; None without canaries.
        account: what a private run has given away; None for other runs.
        learning_rate: the schedule.
        state: progress; everything besides weights and moments that must survive a kill.
        guard: which steps are applied.
        stopping: whether evaluations have stopped getting better.
        replicas: whether all ranks hold the same weights.
        chain: the hash over all steps.
        saves: checkpoints, and when they are due.
        pace: which rank slows the others down.
        own_time: seconds in which this rank waits for nobody.
        chronicle: events and times for the ledger.
        sinks: where metrics and notes go; none except on rank 0.
        stop: requests to stop or to save.
        attempt: how many times the run has been started, from 1.
        flops_per_token: of forward and backward.
        peak_flops: FLOPs per second of all ranks together; None if unknown.
        checkpoint_facts: what a checkpoint is compared with on resume.
    """

    resolved: Resolved
    sizes: StepSizes
    directory: RunDirectory
    topology: Topology
    task: Task
    engine: Engine
    stream: StepStream
    valid: Split | None
    tokenizer: Tokenizer
    canaries: CanaryWatch | None
    account: PrivacyAccount | None
    learning_rate: LearningRate
    state: TrainState
    guard: Guard
    stopping: EarlyStopping
    replicas: ReplicaCheck
    chain: Chain
    saves: Saves
    pace: Pace
    own_time: OwnTime
    chronicle: Chronicle
    sinks: list[Sink]
    stop: StopRequest
    attempt: int
    flops_per_token: float
    peak_flops: float | None
    checkpoint_facts: dict[str, object]
