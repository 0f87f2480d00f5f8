"""`distllm inspect`: the exact text of each rank's batch of any step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distllm.commands.arguments import parse_options
from distllm.config.options import option
from distllm.errors import ConfigError


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
    from distllm.data.stream import PackedSplit, StepStream
    from distllm.data.tokenizer import Tokenizer

    step = require(options.step, "step", "inspect")
    resolved = run_of(require(options.run, "run", "inspect"), options.runs_dir).resolved()
    if step > resolved.max_steps:
        raise ConfigError(
            f"step {step} is after the last of {resolved.max_steps}",
            where="step",
            remedy=f"give a step from 1 to {resolved.max_steps}",
        )
    ranks = range(resolved.world.size) if options.rank is None else [options.rank]
    dataset = Path(resolved.config.data.out)
    split = PackedSplit(dataset, "train", resolved.config.data.seq_len)
    tokenizer = Tokenizer.load(dataset)
    for rank in ranks:
        stream = StepStream(
            split,
            seed=resolved.config.seed,
            sequences_per_step=resolved.sequences_per_step,
            micro_batch_size=resolved.micro_batch_size,
            rank=rank,
            world_size=resolved.world.size,
        )
        for number, batch in enumerate(stream.step((step - 1) * resolved.sequences_per_step), 1):
            print(f"##### step {step}, rank {rank}, micro-batch {number} of {resolved.grad_accum_steps}")
            print(describe_batch(batch, tokenizer))
        stream.close()
    return 0
