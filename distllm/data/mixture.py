"""From the configuration of a mixture to the order of a run, and what is wrong with it before it starts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from distllm.config.problems import Problems
from distllm.config.resolve import Resolved
from distllm.config.schema import Config
from distllm.data.batch import Split
from distllm.data.lengths import LengthWarmup
from distllm.data.manifest import Manifest
from distllm.data.open import open_split
from distllm.data.order import Phase, SampleOrder, SourceSamples, quotas_of
from distllm.data.packing import WindowLayout
from distllm.data.stream import StepStream
from distllm.errors import ConfigError, DataError, DistllmError
from distllm.fsio import digest_bytes
from distllm.registry import did_you_mean
from distllm.units import format_count


def train_sources(manifest: Manifest, config: Config) -> tuple[SourceSamples, ...]:
    """Return the samples of each source's training split; packed documents cost a look at all of them.

    Raises:
        DataError: documents are to be packed, and a shard cannot be opened.
    """
    data = config.data
    if data.packing != "window" or config.task.name != "causal_lm":
        return open_split(config, "train").sources
    shards = {
        name: splits["train"].shards if "train" in splits else () for name, splits in manifest.sources.items()
    }
    return tuple(
        SourceSamples(name, WindowLayout([shard.tokens for shard in held], data.seq_len).samples)
        for name, held in shards.items()
    )


def order_of(config: Config, sources: Sequence[SourceSamples]) -> SampleOrder:
    """Return the order that a configuration asks for.

    A phase begins with the first step at or after its ``from_tokens``; one that begins with the same
    step as the next is never seen.

    Raises:
        ConfigError: a weight names no source, or a source without samples; nothing is drawn; or the
            phases are not in order.
    """
    sequences = config.train.tokens_per_step // config.data.seq_len
    tokens_per_step = sequences * config.data.seq_len
    quotas = {0: _quotas(_weights(config, sources), sources, "data.sources")}
    before = -1
    for number, phase in enumerate(config.mixture.phases):
        where = f"mixture.phases[{number}]"
        if phase.from_tokens <= before:
            raise ConfigError(
                f"the phase from {phase.from_tokens} tokens follows the one from {before}",
                where=f"{where}.from_tokens",
                remedy="give phases in ascending order of from_tokens",
            )
        before = phase.from_tokens
        start = -(-phase.from_tokens // tokens_per_step) * sequences
        weights = _named(phase.weights, sources, f"{where}.weights")
        quotas[start] = _quotas(weights, sources, f"{where}.weights")
    return SampleOrder(
        sources,
        [Phase(start, quota) for start, quota in quotas.items()],
        seed=config.seed,
        window_shards=config.mixture.window_shards,
    )


def lengths_of(config: Config) -> LengthWarmup | None:
    """Return the sequence-length warm-up that a configuration asks for."""
    start = config.mixture.seq_len_start
    if start is None:
        return None
    return LengthWarmup(config.data.seq_len, start, config.mixture.seq_len_warmup)


def plan_digest(config: Config, order: SampleOrder, position: int) -> str:
    """Return the digest of everything that the rows before ``position`` depend on, beside the dataset."""
    lengths = lengths_of(config)
    facts = [order.prefix_digest(position), config.data.packing, lengths.prefix(position) if lengths else []]
    return digest_bytes(json.dumps(facts).encode())


def open_stream(resolved: Resolved, rank: int, world_size: int) -> tuple[Split, StepStream]:
    """Open the training split of a run and the batches of one rank.

    Raises:
        ConfigError: the mixture contradicts the dataset.
        DataError: the dataset is damaged.
    """
    config = resolved.config
    split = open_split(config, "train")
    stream = StepStream(
        split,
        order_of(config, split.sources),
        sequences_per_step=resolved.sequences_per_step,
        micro_batch_size=resolved.micro_batch_size,
        rank=rank,
        world_size=world_size,
        lengths=lengths_of(config),
        max_damage=config.data.max_damage,
        sizes=resolved.steps,
        shards_ahead=config.data.shards_ahead,
    )
    return split, stream


def describe_order(order: SampleOrder, positions: int) -> list[str]:
    """Say for each source of a mixture how often the first ``positions`` samples go through it."""
    drawn = order.drawn(positions)
    return [
        f"source {source.name}: {times} of {positions} samples, "
        f"{times / source.total:.2f} epochs of {source.total}"
        for source, times in zip(order.sources, drawn, strict=True)
        if source.total and len(drawn) > 1
    ]


def check_mixture(resolved: Resolved, manifest: Manifest, problems: Problems) -> None:
    """Note what is wrong with the mixture of a run on a dataset: names, phases, and epochs beyond a limit."""
    config = resolved.config
    try:
        order = order_of(config, train_sources(manifest, config))
    except (ConfigError, DataError) as error:
        _note(error, problems)
        return
    positions = resolved.steps.before(resolved.max_steps)
    for number, (source, drawn) in enumerate(zip(order.sources, order.drawn(positions), strict=True)):
        settings = config.data.sources.get(source.name)
        limit = settings.max_epochs if settings else None
        if limit is None or drawn <= (allowed := math.floor(limit * source.total)):
            continue
        sizes = resolved.steps
        steps = sizes.fitting(order.position_of_draw(number, allowed))
        problems.add(
            f"the run goes through source {source.name} {drawn / source.total:.2f} times "
            f"({drawn} of its {source.total} samples), more than max_epochs {limit:g}",
            where=f"data.sources.{source.name}.max_epochs",
            remedy=f"end the run at {format_count(sizes.before(steps) * config.data.seq_len)} tokens "
            f"(train.max_steps={steps}), multiply the weight of {source.name} by "
            f"{allowed / drawn:.2g}, or allow max_epochs {math.ceil(100 * drawn / source.total) / 100}",
        )


def _note(error: DistllmError, problems: Problems) -> None:
    problems.pass_on(error, where=error.where or "mixture", remedy=error.remedy or "change the mixture")


def _weights(config: Config, sources: Sequence[SourceSamples]) -> list[Fraction]:
    """Return the weights of the run's beginning: a source without one counts as its share of samples."""
    given = {name: source.weight for name, source in config.data.sources.items() if source.weight is not None}
    fixed = _named(given, sources, "data.sources")
    power = 1 / config.mixture.temperature
    sizes = [Fraction(s.total) if power == 1 else Fraction(s.total**power) for s in sources]
    total = sum(sizes, Fraction(0))
    shares = [size / total if total else Fraction(0) for size in sizes]
    return [
        fixed[number] if source.name in given else shares[number] for number, source in enumerate(sources)
    ]


def _named(weights: Mapping[str, float], sources: Sequence[SourceSamples], where: str) -> list[Fraction]:
    """Return one weight for each source, exactly as it is written in decimals."""
    names = [source.name for source in sources]
    for name in weights:
        if name not in names:
            raise ConfigError(
                f"the dataset has no source {name!r} to give a weight to",
                where=f"{where}.{name}",
                remedy=did_you_mean(name, names),
            )
    return [Fraction(repr(weights.get(name, 0.0))) for name in names]


def _quotas(weights: list[Fraction], sources: Sequence[SourceSamples], where: str) -> tuple[int, ...]:
    for source, weight in zip(sources, weights, strict=True):
        if weight and not source.total:
            raise ConfigError(
                f"source {source.name} has a weight and is too short for one sample",
                where=f"{where}.{source.name}",
                remedy="set its weight to 0, prepare more of it, or set a smaller data.seq_len",
            )
    if not any(weights):
        raise ConfigError(
            "no source has a weight above 0", where=where, remedy="give at least one source a weight"
        )
    return quotas_of(weights)
