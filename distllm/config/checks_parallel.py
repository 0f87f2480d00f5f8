"""Sequence and expert parallelism: which models, tasks and numbers of ranks allow it."""

from __future__ import annotations

from distllm.config.problems import Problems
from distllm.config.schema import Config

# Their loss is a sum over single positions.
_BY_POSITION = ("causal_lm", "seq2seq", "instruct")
# Their update of a weight looks at nothing but that weight.
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
        f"ranks share rows of decoders with a loss of single positions, "
        f"not those of model.family={model.family} with task.name={task}",
        keys=["engine.sequence_ranks", "model.family", "task.name"],
        remedy=f"engine.sequence_ranks=1, or a decoder with task.name={' or '.join(_BY_POSITION)}",
    )
    problems.check(
        model.num_experts == 0,
        "the balance of experts is measured over whole rows, and a rank would see a part of each",
        keys=["engine.sequence_ranks", "model.num_experts"],
        remedy="engine.sequence_ranks=1, or model.num_experts=0",
    )
    problems.check(
        model.layer_drop == 0,
        "layer_drop draws whole rows, and ranks that share one would draw differently",
        keys=["engine.sequence_ranks", "model.layer_drop"],
        remedy="model.layer_drop=0, or engine.sequence_ranks=1",
    )
    problems.check(
        not config.engine.compile,
        "a compiled block is one graph, and exchanges of heads for positions cannot be part of it",
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
        f"{experts} experts do not divide among expert_ranks {ranks}",
        keys=["engine.expert_ranks", "model.num_experts"],
        remedy=f"engine.expert_ranks={_divisors(experts)}" if experts else "engine.expert_ranks=1",
    )
    problems.check(
        world_size % ranks == 0,
        f"{world_size} ranks are no whole number of groups of expert_ranks {ranks}",
        keys=["engine.expert_ranks", "cluster.procs_per_node", "cluster.nodes"],
        remedy=f"run on a multiple of {ranks} ranks, or engine.expert_ranks=1",
    )
    problems.check(
        config.optim.name in _BY_ELEMENT,
        f"optim.name={config.optim.name} looks at more of a stack of experts than a rank has",
        keys=["engine.expert_ranks", "optim.name"],
        remedy=f"use {', '.join(_BY_ELEMENT)}, or engine.expert_ranks=1",
    )
    problems.check(
        config.engine.offload == "none",
        "experts of a rank are updated on its device, beside what DeepSpeed offloads",
        keys=["engine.expert_ranks", "engine.offload"],
        remedy="engine.offload=none, or engine.expert_ranks=1",
    )
    problems.check(
        config.model.lora.rank == 0,
        "experts below adapters are frozen, and frozen weights are held by every rank",
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
        f"{world_size} ranks are no whole number of groups of sequence_ranks {ranks}",
        keys=["engine.sequence_ranks", "cluster.procs_per_node", "cluster.nodes"],
        remedy=f"run on a multiple of {ranks} ranks, or engine.sequence_ranks=1",
    )
    problems.check(
        seq_len % ranks == 0,
        f"rows of {seq_len} tokens do not divide among sequence_ranks {ranks}",
        keys=["engine.sequence_ranks", "data.seq_len"],
        remedy=f"data.seq_len={max(1, round(seq_len / ranks)) * ranks}",
    )
    key_values = model.num_kv_heads or model.num_heads
    problems.check(
        model.num_heads % ranks == 0 and (key_values % ranks == 0 or ranks % key_values == 0),
        f"{model.num_heads} heads and {key_values} key/value heads do not divide among "
        f"sequence_ranks {ranks}: each takes as many heads, and their keys and values",
        keys=["engine.sequence_ranks", "model.num_heads", "model.num_kv_heads"],
        remedy=f"engine.sequence_ranks={_degrees(model.num_heads, key_values)}",
    )


def _divisors(count: int) -> str:
    return " or ".join(str(n) for n in range(1, count + 1) if count % n == 0)


def _degrees(heads: int, key_values: int) -> str:
    """Return the numbers of ranks among which heads divide."""
    fit = [n for n in range(1, heads + 1) if heads % n == 0 and (key_values % n == 0 or n % key_values == 0)]
    return " or ".join(map(str, fit))
