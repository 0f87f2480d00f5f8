"""Sequence and expert parallelism: which models, tasks and numbers of ranks allow it."""

from __future__ import annotations

from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.steps import divisors, nearest_multiple

# Tasks whose loss is a sum over single positions.
_BY_POSITION = ("causal_lm", "seq2seq", "instruct")
# Optimizers that update each element of a weight independently.
_BY_ELEMENT = ("adamw", "adam", "sgd", "lion")


def check_sequence_ranks(config: Config, problems: Problems, *, world_size: int) -> None:
    """Check that ``engine.sequence_ranks`` ranks can share the rows of this run."""
    ranks = config.engine.sequence_ranks
    if ranks == 1:
        return
    _check_division(config, problems, ranks, world_size)
    model, task = config.model, config.task.name
    problems.check(
        _sums_positions(config),
        f"sequence parallelism needs a decoder and a loss per position, "
        f"not model.family={model.family} with task.name={task}",
        keys=["engine.sequence_ranks", "model.family", "task.name"],
        remedy=f"engine.sequence_ranks=1, or a decoder with task.name={' or '.join(_BY_POSITION)}",
    )
    problems.check(
        model.num_experts == 0,
        "the balance of experts is measured over whole rows, but with sequence parallelism a rank sees parts",
        keys=["engine.sequence_ranks", "model.num_experts"],
        remedy="engine.sequence_ranks=1, or model.num_experts=0",
    )
    problems.check(
        model.layer_drop == 0,
        "layer_drop drops whole rows, but ranks that share a row would draw different ones",
        keys=["engine.sequence_ranks", "model.layer_drop"],
        remedy="model.layer_drop=0, or engine.sequence_ranks=1",
    )
    problems.check(
        not config.engine.compile,
        "a compiled block is one graph, and cannot contain the all-to-all of sequence parallelism",
        keys=["engine.sequence_ranks", "engine.compile"],
        remedy="engine.compile=false, or engine.sequence_ranks=1",
    )


def check_expert_ranks(config: Config, problems: Problems, *, world_size: int) -> None:
    """Check that ``engine.expert_ranks`` ranks can hold different experts of this run."""
    ranks, experts = config.engine.expert_ranks, config.model.num_experts
    if ranks == 1:
        return
    problems.check(
        experts > 0 and experts % ranks == 0,
        f"{experts} experts cannot be divided among expert_ranks {ranks}",
        keys=["engine.expert_ranks", "model.num_experts"],
        remedy=f"engine.expert_ranks={' or '.join(map(str, divisors(experts)))}"
        if experts
        else "engine.expert_ranks=1",
    )
    problems.check(
        world_size % ranks == 0,
        f"{world_size} ranks are not a whole number of groups of expert_ranks {ranks}",
        keys=["engine.expert_ranks", "cluster.procs_per_node", "cluster.nodes"],
        remedy=f"run on a multiple of {ranks} ranks, or engine.expert_ranks=1",
    )
    problems.check(
        config.optim.name in _BY_ELEMENT,
        f"optim.name={config.optim.name} needs whole tensors of experts, and a rank has only parts of them",
        keys=["engine.expert_ranks", "optim.name"],
        remedy=f"use {', '.join(_BY_ELEMENT)}, or engine.expert_ranks=1",
    )
    problems.check(
        config.engine.offload == "none",
        "experts are updated on the device with expert parallelism, and cannot be offloaded",
        keys=["engine.expert_ranks", "engine.offload"],
        remedy="engine.offload=none, or engine.expert_ranks=1",
    )
    problems.check(
        config.model.lora.rank == 0,
        "with adapters experts are frozen, and every rank holds all frozen weights",
        keys=["engine.expert_ranks", "model.lora.rank"],
        remedy="model.lora.rank=0, or engine.expert_ranks=1",
    )


def parts_experts(config: Config) -> bool:
    """Whether ranks could hold different experts of this model, however they divide."""
    return bool(config.model.num_experts) and config.optim.name in _BY_ELEMENT and not config.model.lora.rank


def shares_rows(config: Config) -> bool:
    """Whether ranks could share rows of this model and task, however they divide."""
    model = config.model
    return (
        _sums_positions(config)
        and not model.num_experts
        and not model.layer_drop
        and not config.engine.compile
    )


def _sums_positions(config: Config) -> bool:
    return config.model.family == "decoder" and config.task.name in _BY_POSITION


def _check_division(config: Config, problems: Problems, ranks: int, world_size: int) -> None:
    model, seq_len = config.model, config.data.seq_len
    problems.check(
        world_size % ranks == 0,
        f"{world_size} ranks are not a whole number of groups of sequence_ranks {ranks}",
        keys=["engine.sequence_ranks", "cluster.procs_per_node", "cluster.nodes"],
        remedy=f"run on a multiple of {ranks} ranks, or engine.sequence_ranks=1",
    )
    problems.check(
        seq_len % ranks == 0,
        f"rows of {seq_len} tokens cannot be divided among sequence_ranks {ranks}",
        keys=["engine.sequence_ranks", "data.seq_len"],
        remedy=f"data.seq_len={nearest_multiple(seq_len, ranks)}",
    )
    key_values = model.num_kv_heads or model.num_heads
    problems.check(
        model.num_heads % ranks == 0 and (key_values % ranks == 0 or ranks % key_values == 0),
        f"{model.num_heads} heads and {key_values} key/value heads cannot be divided equally among "
        f"sequence_ranks {ranks}",
        keys=["engine.sequence_ranks", "model.num_heads", "model.num_kv_heads"],
        remedy=f"engine.sequence_ranks={_degrees(model.num_heads, key_values)}",
    )


def _degrees(heads: int, key_values: int) -> str:
    """Return the numbers of ranks among which heads divide."""
    fit = [n for n in divisors(heads) if (key_values % n == 0 or n % key_values == 0)]
    return " or ".join(map(str, fit))
