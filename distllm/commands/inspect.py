"""`distllm inspect`: the exact text of each rank's batch of any step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distllm.commands.arguments import parse_options
from distllm.config.options import option
from distllm.errors import ConfigError

if TYPE_CHECKING:
    from distllm.data.order import SampleOrder
    from distllm.data.stream import Batch


@dataclass(frozen=True)
class Options:
    """What `distllm inspect` takes."""

    run: str | None = option(None, "name or directory of the run")
    step: int | None = option(None, "the step, counted from 1 as in the log", minimum=1)
    rank: int | None = option(None, "only this rank's part", minimum=0)
    runs_dir: str = option("runs", "directory that holds run directories")


def run(words: Sequence[str]) -> int:
    """Print the batch of one step, rank by rank, micro-batch by micro-batch."""
    options = parse_options("inspect", Options, words)
    from distllm.commands.runs import require, run_of
    from distllm.data.inspect import describe_batch
    from distllm.data.mirror import dataset_directory
    from distllm.data.mixture import open_stream
    from distllm.data.tokenizer import Tokenizer
    from distllm.train.excluded import excluded_samples, first_sample

    step = require(options.step, "step", "inspect")
    run = run_of(require(options.run, "run", "inspect"), options.runs_dir)
    resolved = run.resolved()
    if step > resolved.max_steps:
        raise ConfigError(
            f"step {step} is after the last of {resolved.max_steps}",
            where="step",
            remedy=f"give a step from 1 to {resolved.max_steps}",
        )
    ranks = range(resolved.world.size) if options.rank is None else [options.rank]
    first = first_sample(step, resolved.sequences_per_step, excluded_samples(run.directory.checkpoints))
    tokenizer = Tokenizer.load(dataset_directory(resolved.config.data))
    for rank in ranks:
        _, stream = open_stream(resolved, rank, resolved.world.size)
        for number, batch in enumerate(stream.step(first), 1):
            print(f"##### step {step}, rank {rank}, micro-batch {number} of {resolved.grad_accum_steps}")
            print(describe_batch(batch, tokenizer, _origins(stream.order, batch)))
        stream.close()
    return 0


def _origins(order: SampleOrder, batch: Batch) -> list[str]:
    """Say of each row which sample of which source it is, and in which epoch."""
    return [
        f"{order.sources[source].name} sample {sample}, epoch {epoch + 1}"
        for source, epoch, sample in zip(*(p.tolist() for p in order.locate(batch.sample_ids_B)), strict=True)
    ]
