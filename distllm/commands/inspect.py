"""`distllm inspect`: the exact text of each rank's batch of any step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distllm.commands.arguments import parse_options
from distllm.config.options import option
from distllm.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """Options of `distllm inspect`."""

    run: str | None = option(None, "name or directory of the run")
    step: int | None = option(None, "the step, counted from 1 as in the log", minimum=1)
    rank: int | None = option(None, "only this rank's part", minimum=0)
    runs_dir: str = option("runs", "directory that holds run directories")


def run(words: Sequence[str]) -> int:
    """Print the batch of one step, rank by rank, micro-batch by micro-batch."""
    options = parse_options("inspect", Options, words)
    from distllm.commands.batches import batch_texts
    from distllm.commands.runs import require, run_of
    from distllm.train.excluded import excluded_samples, first_sample

    step = require(options.step, "step", "inspect")
    run = run_of(require(options.run, "run", "inspect"), options.runs_dir)
    resolved = run.resolved()
    if step > resolved.max_steps:
        raise ConfigError(
            f"step {step} is after the last step, {resolved.max_steps}",
            where="step",
            remedy=f"give a step from 1 to {resolved.max_steps}",
        )
    ranks = range(resolved.world.size) if options.rank is None else [options.rank]
    first = first_sample(step, resolved.steps, excluded_samples(run.directory.checkpoints))
    for rank, number, of, text in batch_texts(resolved, step, first, ranks):
        print(f"##### step {step}, rank {rank}, micro-batch {number} of {of}")
        print(text)
    return 0
