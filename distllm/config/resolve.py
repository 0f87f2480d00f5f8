"""Deriving every quantity that follows from the user's settings, once, with its formula.

The user sets the tokens per step and per run, the model and the cluster; batch sizes, the number of steps
and the DeepSpeed JSON are derived. All impossible combinations are reported together, before any process is
started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distllm.config.attention import ORDERS, attention_specs, derivation
from distllm.config.checks import check_machine, check_run
from distllm.config.checks_model import check_model
from distllm.config.engine import deepspeed_json
from distllm.config.memory_limit import MemoryLimit
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.shape import MLP_MULTIPLE, VOCAB_MULTIPLE, ModelShape, settle_shape
from distllm.config.steps import StepSizes, micro_batch_of
from distllm.machine import cores_of_ranks


@dataclass(frozen=True, slots=True)
class World:
    """The ranks of a run, and what determined their number."""

    size: int
    local_size: int
    origin: str

    @classmethod
    def from_config(cls, config: Config) -> World:
        """The world that ``cluster`` asks for."""
        nodes, local = config.cluster.nodes, config.cluster.procs_per_node
        formula = f"cluster.nodes x cluster.procs_per_node = {nodes} x {local}"
        return cls(nodes * local, local, formula)

    @classmethod
    def from_launcher(cls, size: int, local_size: int, config: Config) -> World:
        """The world a launcher has started, which need not be the one that ``cluster`` asks for."""
        asked = cls.from_config(config)
        if (size, local_size) == (asked.size, asked.local_size):
            return asked
        return cls(size, local_size, f"the launcher's WORLD_SIZE, which overrides {asked.origin}")


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """What a prepared dataset determines."""

    vocab_size: int
    train_tokens: int
    valid_tokens: int
    digest: str


@dataclass(frozen=True, slots=True)
class Derivation:
    """A derived value and its formula."""

    value: int | float | str
    formula: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration with all derived numbers."""

    config: Config
    shape: ModelShape
    world: World
    threads_per_rank: int
    sequences_per_step: int
    micro_batch_size: int
    grad_accum_steps: int
    max_steps: int
    total_tokens: int
    warmup_tokens: int
    deepspeed: Mapping[str, Any]
    derivations: Mapping[str, Derivation] = field(repr=False)
    memory_limit: MemoryLimit | None = None

    @property
    def steps(self) -> StepSizes:
        """The sequences of each step; ``sequences_per_step`` is that of the last."""
        return StepSizes.from_config(self.config)

    @property
    def trainable_params(self) -> int:
        """Number of trainable parameters: all, or those of the adapters."""
        return int(self.derivations["trainable_params"].value)

    @property
    def stop_step(self) -> int:
        """The step after which this attempt ends; the schedule may continue beyond it."""
        return min(self.config.train.stop_at_step or self.max_steps, self.max_steps)


def resolve(
    config: Config,
    *,
    world: World | None = None,
    dataset: DatasetFacts | None = None,
    memory_limit: MemoryLimit | None = None,
    problems: Problems | None = None,
    starts_here: bool = True,
) -> Resolved:
    """Derive every number of a training run.

    Args:
        config: the validated configuration.
        world: the ranks a launcher has started; default: what ``cluster`` asks for.
        dataset: facts of the prepared dataset; without it the vocabulary is the configured one.
        memory_limit: the micro-batch that did not fit in an earlier attempt.
        problems: problems already found; they are raised together with those found here.
        starts_here: whether this machine will run it, and must have the cores and devices.

    Raises:
        ConfigProblems: every problem found.
    """
    found = problems if problems is not None else Problems()
    world = world or World.from_config(config)
    if config.model.init_from is not None or config.model.lora.init_from is not None:
        from distllm.config.huggingface import with_imported  # slow to import

        config = with_imported(config, found)
    check_model(config, found)
    check_run(config, found, world_size=world.size, dataset_tokens=dataset.train_tokens if dataset else None)
    if starts_here:
        check_machine(config, found, local_world_size=world.local_size)
    if config.model.vocab_size is not None and dataset is not None:
        found.check(
            dataset.vocab_size <= config.model.vocab_size,
            f"the dataset's tokenizer has {dataset.vocab_size} ids, the model {config.model.vocab_size}",
            keys=["model.vocab_size", "data.out"],
            remedy="prepare the data with the tokenizer of the model (tokenizer.path)",
        )
    found.raise_if_any()
    return _settle(config, world, dataset, memory_limit)


class _Derivations:
    """Records the value and formula of each derived quantity."""

    def __init__(self) -> None:
        self.entries: dict[str, Derivation] = {}

    def settle(self, name: str, value: int, formula: str) -> int:
        """Record the formula of ``name`` and return its value."""
        self.entries[name] = Derivation(value, formula)
        return value


def _settle(
    config: Config, world: World, dataset: DatasetFacts | None, memory_limit: MemoryLimit | None
) -> Resolved:
    derived = _Derivations()
    derived.settle("world_size", world.size, world.origin)
    threads = _threads_per_rank(config, world, derived)
    sequences, micro, accumulation = _batch_geometry(config, world, derived, memory_limit)
    max_steps, total_tokens, warmup_tokens = _horizon(config, derived)
    shape = _shape(config, dataset, derived)
    json = deepspeed_json(
        zero_stage=config.engine.zero_stage,
        micro_batch_size=micro,
        grad_accum_steps=accumulation,
        world_size=world.size,
        grad_clip=config.optim.grad_clip,
        compute=config.precision.compute,
        bucket_bytes=config.engine.bucket_bytes,
        device=config.cluster.device,
        compiled=config.engine.compile,
        offload=config.engine.offload,
        hpz_ranks=config.engine.hpz_ranks,
    )
    return Resolved(
        config=config,
        shape=shape,
        world=world,
        threads_per_rank=threads,
        sequences_per_step=sequences,
        micro_batch_size=micro,
        grad_accum_steps=accumulation,
        max_steps=max_steps,
        total_tokens=total_tokens,
        warmup_tokens=warmup_tokens,
        deepspeed=json,
        derivations=derived.entries,
        memory_limit=memory_limit,
    )


def _threads_per_rank(config: Config, world: World, derived: _Derivations) -> int:
    asked, cores = config.cluster.threads_per_rank, cores_of_ranks()
    if asked:
        return derived.settle("threads_per_rank", asked, "cluster.threads_per_rank")
    share = max(1, cores // world.local_size)
    return derived.settle(
        "threads_per_rank", share, f"{cores} cores / {world.local_size} ranks on this machine"
    )


def _batch_geometry(
    config: Config, world: World, derived: _Derivations, memory_limit: MemoryLimit | None
) -> tuple[int, int, int]:
    """Return sequences per step, micro-batch size and accumulation steps."""
    tokens, seq_len = config.train.tokens_per_step, config.data.seq_len
    sequences = derived.settle(
        "sequences_per_step",
        tokens // seq_len,
        f"train.tokens_per_step / data.seq_len = {tokens} / {seq_len}",
    )
    sharing = config.engine.sequence_ranks
    groups, own = world.size // sharing, seq_len // sharing
    per_rank = sequences // groups
    allowed, origin = config.engine.micro_batch_tokens, "engine.micro_batch_tokens"
    if memory_limit is not None and memory_limit.allowed_tokens < allowed:
        allowed, origin = max(memory_limit.allowed_tokens, own), str(memory_limit)
    if config.optim.private.noise is not None:  # a row at a time, since each is clipped
        allowed, origin = own, "data.seq_len (optim.private)"
    bound = allowed // own
    length, ranks = "data.seq_len", "world_size"
    if sharing > 1:
        length, ranks = f"({length} / engine.sequence_ranks)", f"{ranks} / engine.sequence_ranks"
    micro = derived.settle(
        "micro_batch_size",
        micro_batch_of(per_rank, bound),
        f"largest divisor of a rank's {per_rank} sequences that is at most {origin} / {length} = {bound}",
    )
    accumulation = derived.settle(
        "grad_accum_steps",
        per_rank // micro,
        f"sequences_per_step / (micro_batch_size x {ranks}) = {sequences} / ({micro} x {groups})",
    )
    return sequences, micro, accumulation


def _horizon(config: Config, derived: _Derivations) -> tuple[int, int, int]:
    """Return steps, tokens and warm-up tokens of the whole run."""
    train, fraction = config.train, config.schedule.warmup_fraction
    sizes, seq_len = StepSizes.from_config(config), config.data.seq_len
    growing = len(sizes.stages) > 1
    if train.max_steps is not None:
        max_steps = derived.settle("max_steps", train.max_steps, "train.max_steps")
    else:
        asked = train.total_tokens or 0
        formula = f"train.total_tokens / train.tokens_per_step = {asked} / {train.tokens_per_step}"
        if growing:
            formula = f"whole steps, growing as batch says, in train.total_tokens = {asked}"
        max_steps = derived.settle("max_steps", sizes.fitting(asked // seq_len), formula)
    total_tokens = derived.settle(
        "total_tokens",
        sizes.before(max_steps) * seq_len,
        f"sequences of {max_steps} growing steps x data.seq_len = {sizes.before(max_steps)} x {seq_len}"
        if growing
        else f"max_steps x train.tokens_per_step = {max_steps} x {train.tokens_per_step}",
    )
    warmup_tokens = derived.settle(
        "warmup_tokens",
        round(fraction * total_tokens),
        f"schedule.warmup_fraction x total_tokens = {fraction} x {total_tokens}",
    )
    return max_steps, total_tokens, warmup_tokens


def _shape(config: Config, dataset: DatasetFacts | None, derived: _Derivations) -> ModelShape:
    model = config.model
    vocab_size = dataset.vocab_size if dataset else config.tokenizer.vocab_size
    origin = "the dataset's tokenizer" if dataset else "tokenizer.vocab_size"
    shape = settle_shape(model, vocab_size, max(config.data.seq_len, config.data.source_len or 0))
    derived.settle(
        "vocab_size",
        shape.vocab_size,
        "model.vocab_size"
        if model.vocab_size
        else f"{vocab_size} ids of {origin}, rounded up to a multiple of {VOCAB_MULTIPLE}",
    )
    derived.settle(
        "head_dim",
        shape.head_dim,
        "model.head_dim"
        if model.head_dim
        else f"model.hidden_size / model.num_heads = {shape.hidden_size} / {shape.num_heads}",
    )
    derived.settle(
        "num_kv_heads",
        shape.num_kv_heads,
        "model.num_kv_heads" if model.num_kv_heads else "model.num_heads",
    )
    wide = f"8/3 x model.hidden_size {shape.hidden_size}, rounded up to a multiple of {MLP_MULTIPLE}"
    if not model.gated:
        wide = f"4 x model.hidden_size {shape.hidden_size}"
    derived.settle(
        "intermediate_size",
        shape.intermediate_size,
        "model.intermediate_size" if model.intermediate_size else wide,
    )
    derived.settle("num_params", shape.num_params, "counted from the model's shape")
    _settle_trainable(config, shape, derived)
    for kind, spec in attention_specs(config).items():
        names, formula = derivation(spec, ORDERS[config.engine.kernels])
        derived.entries[f"attention.{kind}"] = Derivation(names, formula)
    return shape


def _settle_trainable(config: Config, shape: ModelShape, derived: _Derivations) -> None:
    lora = config.model.lora
    if lora.rank == 0:
        derived.settle("trainable_params", shape.num_params, "all of them: model.lora.rank = 0")
        return
    count = shape.adapter_params(lora)
    formula = f"adapters of rank {lora.rank} for {', '.join(lora.targets)}"
    if config.task.name == "extractive_qa":
        count, formula = count + 2 * (shape.hidden_size + 1), f"{formula}, and the head of the answers"
    derived.settle("trainable_params", count, formula)
