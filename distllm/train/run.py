"""A run in the hands of one rank: all that the training loop works with."""

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
    """Built once, by `distllm.train.build`."""

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
