"""Checks of combinations of keys, each problem with its cause and remedy.

Every function adds to a `Problems` and none raises, so that a command reports all problems at once.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from distllm.config.attention import ORDERS, attention_specs, candidates, refusal
from distllm.config.checks_parallel import check_expert_ranks, check_sequence_ranks
from distllm.config.checks_private import check_private
from distllm.config.checks_task import check_task
from distllm.config.faults import AROUND, KINDS, parse_fault
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.schema_optim import WHOLE_MATRICES
from distllm.config.schema_stopping import METRICS, OF_SOURCE
from distllm.config.steps import nearest_multiple
from distllm.errors import ConfigError
from distllm.machine import cores_of_ranks, filesystem_of
from distllm.registry import did_you_mean
from distllm.units import count_of


def check_run(config: Config, problems: Problems, *, world_size: int, dataset_tokens: int | None) -> None:
    """Check the run's length, its global batch and the engine."""
    _check_length(config, problems)
    _check_batch(config, problems, world_size, dataset_tokens)
    _check_engine(config, problems)
    check_sequence_ranks(config, problems, world_size=world_size)
    check_expert_ranks(config, problems, world_size=world_size)
    _check_kernels(config, problems)
    _check_optimizer(config, problems)
    _check_bf16_weights(config, problems)
    check_task(config, problems)
    check_private(config, problems)
    _check_cluster(config, problems)
    _check_warmup(config, problems)
    _check_checkpoints(config, problems)
    _check_early_stopping(config, problems)
    _check_faults(config, problems, world_size)
    problems.check(
        bool(config.name) and "/" not in config.name and not config.name.startswith("."),
        f"{config.name!r} cannot be the name of a directory",
        keys=["name"],
        remedy="use letters, digits, '-', '_' and '.'",
    )


def check_machine(config: Config, problems: Problems, *, local_world_size: int) -> None:
    """Check that this machine has the cores, devices and compiler the run asks for."""
    cluster, cores = config.cluster, cores_of_ranks()
    if cluster.device == "cpu":
        problems.check(
            cluster.oversubscribe or local_world_size <= cores,
            f"{local_world_size} ranks requested, this machine has {count_of(cores, 'CPU core')}",
            keys=["cluster.procs_per_node"],
            remedy=f"cluster.procs_per_node={cores}, or cluster.oversubscribe=true to share cores (slow)",
        )
        threads = (cluster.threads_per_rank or 1) * local_world_size
        problems.check(
            cluster.oversubscribe or local_world_size > cores or threads <= cores,
            f"{local_world_size} ranks need {threads} threads, this machine has {cores} CPU cores",
            keys=["cluster.threads_per_rank", "cluster.procs_per_node"],
            remedy=f"cluster.threads_per_rank={max(1, cores // local_world_size)}",
        )
    else:
        gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
        problems.check(
            local_world_size <= gpus,
            f"{local_world_size} ranks need as many GPUs, this machine has {gpus}",
            keys=["cluster.device", "cluster.procs_per_node"],
            remedy="run on a GPU machine, lower cluster.procs_per_node, or use cluster=local for the CPU",
        )
    _check_offload_dir(config.engine.offload_dir, problems)
    problems.check(
        not config.engine.compile
        or cluster.device != "cpu"
        or any(map(shutil.which, ("c++", "g++", "clang++"))),
        "engine.compile on a CPU needs a C++ compiler, none is on PATH",
        keys=["engine.compile"],
        remedy="apt-get install g++, or engine.compile=false",
    )


def _check_offload_dir(directory: str | None, problems: Problems) -> None:
    if directory is None:
        return
    kind = filesystem_of(Path(directory))
    problems.check(
        kind not in ("tmpfs", "ramfs"),
        f"{directory} is on {kind}, which is in memory",
        keys=["engine.offload_dir"],
        remedy="name a directory on a disk, or use engine.offload=cpu",
    )


def _check_kernels(config: Config, problems: Problems) -> None:
    """Refuse features of attention that no backend of the chosen order supports."""
    kernels = config.engine.kernels
    problems.check(
        kernels != "triton" or config.cluster.device == "cuda",
        "engine.kernels=triton compiles for a CUDA device, and cluster.device is cpu",
        keys=["engine.kernels", "cluster.device"],
        remedy="engine.kernels=torch",
    )
    for kind, spec in attention_specs(config).items():
        on_gpu = replace(spec, device="cuda") if kernels == "triton" else spec
        if not candidates(on_gpu, ORDERS[kernels]):
            problems.check(
                False,
                f"attention of {kind} layers: {refusal(on_gpu, ORDERS[kernels])}",
                keys=["engine.kernels", "model"],
                remedy="engine.kernels=torch",
            )


def _check_length(config: Config, problems: Problems) -> None:
    train = config.train
    problems.check(
        train.total_tokens is not None or train.max_steps is not None,
        "the length of the run is not given",
        keys=["train.total_tokens", "train.max_steps"],
        remedy="give train.total_tokens=1B or train.max_steps=1000",
    )
    problems.check(
        train.total_tokens is None or train.max_steps is None,
        "the length of the run is given twice",
        keys=["train.total_tokens", "train.max_steps"],
        remedy="keep one of them; the other follows (set it to null)",
    )
    problems.check(
        train.total_tokens is None or train.total_tokens >= train.tokens_per_step,
        f"total_tokens {train.total_tokens} is less than one step of {train.tokens_per_step}",
        keys=["train.total_tokens", "train.tokens_per_step"],
        remedy="raise train.total_tokens or lower train.tokens_per_step",
    )


def _check_batch(config: Config, problems: Problems, world_size: int, dataset_tokens: int | None) -> None:
    tokens, seq_len = config.train.tokens_per_step, config.data.seq_len
    sharing = config.engine.sequence_ranks
    groups = max(1, world_size // sharing)
    unit = seq_len * groups
    ranks = f"{world_size} ranks" if sharing == 1 else f"{groups} groups of {sharing} ranks"
    problems.check(
        tokens % unit == 0,
        f"tokens_per_step {tokens} is not a whole number of {seq_len}-token sequences on {ranks}",
        keys=["train.tokens_per_step", "data.seq_len", "cluster.procs_per_node"],
        remedy=f"train.tokens_per_step={nearest_multiple(tokens, unit)} (a multiple of {unit})",
    )
    start = config.batch.start_tokens
    sizes = [tokens >> done for done in range(1, 64) if not tokens % (unit << done)]
    problems.check(
        start is None or start in sizes or tokens % unit != 0,
        f"steps cannot grow from {start} tokens: that is not tokens_per_step {tokens} over a power of two, "
        f"in whole sequences of {seq_len} on {world_size} ranks",
        keys=["batch.start_tokens", "train.tokens_per_step"],
        remedy=f"use one of {', '.join(map(str, sizes))}" if sizes else "batch.start_tokens=null",
    )
    problems.check(
        (start is None) == (config.batch.warmup_tokens == 0),
        "a batch-size warm-up needs both the tokens of the first steps and a length",
        keys=["batch.start_tokens", "batch.warmup_tokens"],
        remedy="set both, or leave batch.start_tokens=null and batch.warmup_tokens=0",
    )
    own = -(-seq_len // sharing)
    problems.check(
        config.engine.micro_batch_tokens >= own,
        f"micro_batch_tokens {config.engine.micro_batch_tokens} is less than one sequence of {seq_len}"
        + (f", of which a rank has {own}" if sharing > 1 else ""),
        keys=["engine.micro_batch_tokens", "data.seq_len"],
        remedy=f"engine.micro_batch_tokens={own} or more",
    )
    problems.check(
        dataset_tokens is None or dataset_tokens > tokens,
        f"the training split has {dataset_tokens} tokens, less than one step of {tokens}",
        keys=["data.out", "train.tokens_per_step"],
        remedy="prepare more data, or lower train.tokens_per_step",
    )


def _check_cluster(config: Config, problems: Problems) -> None:
    cluster = config.cluster
    devices = cluster.hardware.devices_per_node
    problems.check(
        cluster.device == "cpu" or cluster.procs_per_node <= devices,
        f"{cluster.procs_per_node} ranks per node requested, a node has {devices} devices",
        keys=["cluster.procs_per_node", "cluster.hardware.devices_per_node"],
        remedy=f"cluster.procs_per_node={devices} and more cluster.nodes",
    )


def _check_warmup(config: Config, problems: Problems) -> None:
    mixture, seq_len = config.mixture, config.data.seq_len
    start = mixture.seq_len_start
    lengths = [
        seq_len >> doublings for doublings in range(1, seq_len.bit_length()) if not seq_len % 2**doublings
    ]
    problems.check(
        start is None or start in lengths,
        f"seq_len_start {start} is not data.seq_len {seq_len} over a power of two",
        keys=["mixture.seq_len_start", "data.seq_len"],
        remedy=f"use one of {', '.join(map(str, lengths))}" if lengths else "use an even data.seq_len",
    )
    problems.check(
        (start is None) == (mixture.seq_len_warmup == 0),
        "a sequence-length warm-up needs both a first length and a number of tokens",
        keys=["mixture.seq_len_start", "mixture.seq_len_warmup"],
        remedy="set both, or leave mixture.seq_len_start=null and mixture.seq_len_warmup=0",
    )
    problems.check(
        start is None or config.data.mask_documents,
        "without data.mask_documents attention spans whole rows, and a sequence-length warm-up does nothing",
        keys=["mixture.seq_len_start", "data.mask_documents"],
        remedy="data.mask_documents=true, or mixture.seq_len_start=null",
    )


def _check_checkpoints(config: Config, problems: Problems) -> None:
    checkpoint = config.checkpoint
    problems.check(
        checkpoint.keep_best == 0 or config.eval.every_steps > 0,
        "checkpoint.keep_best needs the validation loss, and nothing is evaluated",
        keys=["checkpoint.keep_best", "eval.every_steps"],
        remedy="set eval.every_steps (preferably to checkpoint.every_steps), or checkpoint.keep_best=0",
    )
    problems.check(
        (checkpoint.ephemeral_every_steps or 0) < checkpoint.every_steps,
        f"checkpoint.ephemeral_every_steps {checkpoint.ephemeral_every_steps} is not below every_steps "
        f"{checkpoint.every_steps}: ephemeral checkpoints come between the others",
        keys=["checkpoint.ephemeral_every_steps", "checkpoint.every_steps"],
        remedy="lower checkpoint.ephemeral_every_steps, or leave it null",
    )


def _check_early_stopping(config: Config, problems: Problems) -> None:
    stopping = config.train.early_stopping
    problems.check(
        stopping.patience is None or config.eval.every_steps > 0,
        "train.early_stopping needs evaluations, and nothing is evaluated",
        keys=["train.early_stopping.patience", "eval.every_steps"],
        remedy="set eval.every_steps, or train.early_stopping.patience=null",
    )
    problems.check(
        stopping.metric in METRICS or stopping.metric.startswith(OF_SOURCE),
        f"unknown metric {stopping.metric!r}",
        keys=["train.early_stopping.metric"],
        remedy=f"use {', '.join(METRICS)}, or {OF_SOURCE}NAME; {did_you_mean(stopping.metric, METRICS)}",
    )


def _check_faults(config: Config, problems: Problems, world_size: int) -> None:
    for text in config.chaos.faults:
        try:
            fault = parse_fault(text)
        except ConfigError as error:
            problems.found.append(error)
            continue
        problems.check(
            fault.rank < world_size and fault.step > 0 and fault.steps > 0,
            f"the fault {text!r} never happens: ranks are 0 to {world_size - 1}, steps begin at 1",
            keys=["chaos.faults"],
            remedy="name a rank and a step of this run",
        )
    known = [*KINDS, *AROUND]
    for kind in config.chaos.kinds:
        problems.check(
            kind in known,
            f"unknown kind of fault {kind!r}",
            keys=["chaos.kinds"],
            remedy=did_you_mean(kind, known),
        )


def _check_engine(config: Config, problems: Problems) -> None:
    engine = config.engine
    problems.check(
        engine.name != "local" or engine.zero_stage == 0,
        f"engine.name=local does not partition anything, but zero_stage is {engine.zero_stage}",
        keys=["engine.name", "engine.zero_stage"],
        remedy="use engine=local (zero_stage 0), or engine=zero2 for DeepSpeed",
    )
    problems.check(
        engine.offload == "none" or engine.zero_stage > 0,
        "only state that ZeRO partitions can be offloaded, and zero_stage is 0",
        keys=["engine.offload", "engine.zero_stage"],
        remedy="use engine=zero1, zero2 or zero3, or engine.offload=none",
    )
    problems.check(
        (engine.offload == "nvme") == (engine.offload_dir is not None),
        "offload=nvme needs a directory for its files, and other offloads have none",
        keys=["engine.offload", "engine.offload_dir"],
        remedy="set engine.offload_dir to a directory on a disk of each node, or leave it null",
    )
    problems.check(
        engine.name != "local" or config.precision.compute == "fp32" or config.optim.name == "adamw_bf16",
        "engine.name=local keeps no fp32 copy of bf16 weights",
        keys=["engine.name", "precision.compute", "optim.name"],
        remedy="use precision=fp32, engine=zero1 for bf16 with fp32 master weights, or optim=adamw_bf16",
    )
    neighbours = config.cluster.procs_per_node
    problems.check(
        engine.hpz_ranks == 1 or (engine.zero_stage == 3 and neighbours % engine.hpz_ranks == 0),
        f"hpz_ranks {engine.hpz_ranks} needs zero_stage 3 and must divide the {neighbours} ranks of a node",
        keys=["engine.hpz_ranks", "engine.zero_stage", "cluster.procs_per_node"],
        remedy=f"engine.zero_stage=3 engine.hpz_ranks={neighbours}, or engine.hpz_ranks=1",
    )
    problems.check(
        not (engine.compile and engine.activation_checkpointing == "selective"),
        "torch.compile decides itself what a block keeps: selective checkpointing has no effect inside it",
        keys=["engine.compile", "engine.activation_checkpointing"],
        remedy="engine.activation_checkpointing=full, or engine.compile=false",
    )


def _check_optimizer(config: Config, problems: Problems) -> None:
    name, stage = config.optim.name, config.engine.zero_stage
    problems.check(
        name not in WHOLE_MATRICES or stage == 0,
        f"optim.name={name} needs whole matrices, and zero_stage {stage} divides them into flat parts",
        keys=["optim.name", "engine.zero_stage"],
        remedy="use engine=zero0 or engine=local, or optim=adamw",
    )


def _check_bf16_weights(config: Config, problems: Problems) -> None:
    """Check that AdamW on bf16 weights runs in an engine without fp32 copies of the weights."""
    if config.optim.name != "adamw_bf16":
        return
    problems.check(
        config.engine.name == "local" and config.precision.compute == "bf16",
        "optim.name=adamw_bf16 is for bf16 weights without an fp32 copy: engine.name=local and bf16",
        keys=["optim.name", "engine.name", "precision.compute"],
        remedy="use engine=local precision=bf16, or optim=adamw",
    )
