"""The whole experiment as one tree of frozen dataclasses: every key a user can set, and nothing else.

Only what a user decides is here. Quantities that follow (micro-batch size, accumulation, number of steps, the
DeepSpeed JSON) are derived in `resolve`. A field's metadata holds its help text, its unit (so that ``2B`` or
``64MiB`` can be written) and what a change of it means on resume:

- ``identity``: another model, tokenizer or data order; a resume is refused.
- ``schedule``: another optimisation path; a resume says so.
- ``cosmetic``: where and how it runs; a resume only logs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distllm.config.options import option
from distllm.config.schema_batch import BatchConfig
from distllm.config.schema_chaos import ChaosConfig
from distllm.config.schema_checkpoint import CheckpointConfig
from distllm.config.schema_clean import CleanConfig
from distllm.config.schema_cluster import ClusterConfig
from distllm.config.schema_dedup import DedupConfig
from distllm.config.schema_guard import GuardConfig
from distllm.config.schema_mixture import MixtureConfig
from distllm.config.schema_model import ModelConfig
from distllm.config.schema_optim import OptimConfig, ScheduleConfig
from distllm.config.schema_privacy import PrivacyConfig
from distllm.config.schema_read import ReadConfig, SourceConfig
from distllm.config.schema_stopping import EarlyStoppingConfig
from distllm.config.schema_task import TaskConfig
from distllm.config.schema_tokenizer import TokenizerConfig


@dataclass(frozen=True)
class DataConfig(ReadConfig):
    """From raw documents to packed samples. The keys of `ReadConfig` describe a single source."""

    sources: dict[str, SourceConfig] = option(
        None, "many sources by name, with data.source=many", factory=dict, on_resume="identity"
    )
    out: str = option(
        "data/pydocs", "dataset directory: prepare writes it; train reads it, also from s3:// or https://"
    )
    cache_dir: str | None = option(
        None, "where a dataset at a URL is mirrored; null: ~/.cache/distllm/datasets"
    )
    cache_bytes: int | None = option(
        None, "largest total size of mirrored shards; null keeps all", unit="bytes", minimum=1
    )
    shards_ahead: int = option(
        4, "shards of a mirrored dataset that are fetched before they are needed; 0 waits for each", minimum=0
    )
    work: str | None = option(
        None, "where finished stages are kept for the next preparation; null: next to data.out, as OUT.work"
    )
    workers: int = option(1, "processes that prepare together on this machine", minimum=1)
    valid_fraction: float = option(
        0.02, "share of documents held out for validation", on_resume="identity", minimum=0.0, maximum=0.5
    )
    shard_bytes: int = option(
        64 * 2**20, "bytes of token ids per shard", unit="bytes", on_resume="identity", minimum=1024
    )
    seq_len: int = option(512, "tokens per packed sample", on_resume="identity", minimum=2)
    packing: Literal["window", "greedy", "best_fit", "single"] = option(
        "window",
        "how rows of seq_len are filled: windows of the stream, whole documents in order, each into the "
        "fullest row that holds it, or one document or example per row",
        on_resume="identity",
    )
    source_len: int | None = option(
        None,
        "tokens per row of the source of a pair; null means seq_len",
        on_resume="identity",
        minimum=2,
    )
    too_long: Literal["fail", "drop", "cut"] = option(
        "fail",
        "an example longer than a row: fail before step 1, drop it, or cut it",
        on_resume="identity",
    )
    mask_documents: bool = option(True, "attention never crosses a document boundary", on_resume="identity")
    on_damage: Literal["fail", "skip"] = option(
        "fail", "a damaged block of a shard: fail, or skip: its samples carry no loss and are counted"
    )
    max_damage: float = option(
        0.001, "largest share of samples that on_damage=skip may lose", minimum=0.0, maximum=1.0
    )


@dataclass(frozen=True)
class TrainConfig:
    """How much to train, and the global batch."""

    tokens_per_step: int = option(
        16384,
        "target tokens per optimizer step over all ranks",
        unit="count",
        on_resume="identity",
        minimum=1,
        maximum=10**12,
    )
    total_tokens: int | None = option(
        None,
        "length of the run in tokens; give this or max_steps",
        unit="count",
        on_resume="schedule",
        minimum=1,
    )
    max_steps: int | None = option(
        None,
        "length of the run in steps; give this or total_tokens",
        unit="count",
        on_resume="schedule",
        minimum=1,
    )
    stop_at_step: int | None = option(
        None, "stop here with a checkpoint; the schedule still ends at the full length", minimum=1
    )
    early_stopping: EarlyStoppingConfig = option(
        None, "ending a run that has stopped improving", factory=EarlyStoppingConfig
    )


@dataclass(frozen=True)
class EngineConfig:
    """What holds and updates the weights."""

    name: Literal["deepspeed", "local"] = option(
        "deepspeed", "deepspeed, or local: the plain-torch twin used as oracle"
    )
    zero_stage: int = option(
        2,
        "what DeepSpeed partitions: 0 nothing, 1 optimizer, 2 + gradients, 3 + weights",
        minimum=0,
        maximum=3,
    )
    offload: Literal["none", "cpu", "nvme"] = option(
        "none",
        "cpu: fp32 weights and moments live in main memory and are updated there; nvme: in files that are "
        "mapped into it; need zero_stage 1 to 3",
    )
    offload_dir: str | None = option(None, "directory of the files of offload=nvme, on a disk of each node")
    micro_batch_tokens: int = option(
        4096, "upper bound of tokens in one forward pass of one rank", unit="count", minimum=1
    )
    bucket_bytes: int = option(
        64 * 2**20, "size of the buffers in which gradients are reduced", unit="bytes", minimum=4096
    )
    compile: bool = option(False, "torch.compile the blocks (needs a C++ compiler on CPU)")
    hpz_ranks: int = option(
        1,
        "stage 3: neighbouring ranks that hold one more whole copy of the weights, from which backward "
        "gathers (ZeRO++ hpZ); 1: none",
        minimum=1,
    )
    sequence_ranks: int = option(
        1,
        "neighbouring ranks that share each row by its positions, and attention by its heads (Ulysses), "
        "for rows too long for one; 1: none",
        minimum=1,
    )
    expert_ranks: int = option(
        1,
        "neighbouring ranks that hold different experts of each mixture; tokens travel to the experts they "
        "are sent to; 1: every rank holds all",
        minimum=1,
    )
    activation_checkpointing: Literal["none", "selective", "full"] = option(
        "none",
        "activations kept for backward: none drops nothing; selective keeps products and attention; "
        "full keeps only each block's input",
    )
    kernels: Literal["torch", "triton", "auto"] = option(
        "torch",
        "torch's fused operations, or triton: distllm's kernels (CUDA, compute capability 8.0 or more), or "
        "auto: the first attention of torch's, distllm's and flex_attention that computes what is asked",
    )


@dataclass(frozen=True)
class PrecisionConfig:
    """Number formats."""

    compute: Literal["fp32", "bf16"] = option(
        "fp32", "format of weights and activations in forward and backward", on_resume="schedule"
    )


@dataclass(frozen=True)
class EvalConfig:
    """Periodic validation."""

    every_steps: int = option(100, "steps between evaluations; 0 turns them off", minimum=0)
    max_tokens: int | None = option(
        262144, "validation tokens per evaluation; null uses all", unit="count", minimum=1
    )
    prompt: str = option("", "prompt of the sample printed at each evaluation; empty begins a text")
    sample_tokens: int = option(40, "length of that sample; 0 prints none", minimum=0)
    temperature: float = option(0.8, "sampling temperature of that sample; 0 is greedy", minimum=0.0)


@dataclass(frozen=True)
class LoggerConfig:
    """What is written down, and where. ``metrics.jsonl`` is always written."""

    every_steps: int = option(1, "steps between log lines", minimum=1)
    console: bool = option(True, "one line per logged step on rank 0")
    wandb: Literal["disabled", "offline", "online"] = option(
        "disabled", "Weights & Biases; online also writes offline, and uploads in the background"
    )
    tensorboard: bool = option(False, "write TensorBoard event files into the run directory")
    mlflow: str | None = option(None, "MLflow tracking URI, such as http://host:5000; null: no MLflow")
    trackio: bool = option(False, "write a local trackio project into the run directory")
    project: str = option("distllm", "project (experiment in MLflow) that the run belongs to")
    group: str | None = option(None, "group of runs within the project, such as the arms of a comparison")


@dataclass(frozen=True)
class Config:
    """One experiment: the root of every configuration."""

    name: str = option("run", "name of the run; its directory is runs_dir/name")
    runs_dir: str = option("runs", "directory that holds run directories")
    seed: int = option(0, "root of every random stream", on_resume="identity", minimum=0)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    clean: CleanConfig = field(default_factory=CleanConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    chaos: ChaosConfig = field(default_factory=ChaosConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
