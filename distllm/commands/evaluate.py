"""`distllm evaluate`: validation perplexity of a run's checkpoint."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass

from distllm.commands.arguments import parse_options
from distllm.config.options import option


@dataclass(frozen=True)
class Options:
    """What `distllm evaluate` takes."""

    run: str | None = option(None, "name or directory of the run")
    step: int | None = option(None, "checkpoint to measure; null takes the newest", minimum=0)
    max_tokens: int | None = option(None, "validation tokens; null takes all", unit="count", minimum=1)
    runs_dir: str = option("runs", "directory that holds run directories")


def run(words: Sequence[str]) -> int:
    """Print loss, perplexity and bits per byte of a checkpoint on the validation split."""
    options = parse_options("evaluate", Options, words)
    from distllm.commands.runs import require, run_of

    stored = run_of(require(options.run, "run", "evaluate"), options.runs_dir)
    resolved = stored.resolved()
    gc.enable()
    from distllm.data.open import open_split
    from distllm.dist.topology import Topology
    from distllm.evaluate.perplexity import evaluate_perplexity
    from distllm.infer.load import load_trained
    from distllm.tasks.registry import build_task

    trained = load_trained(stored.directory.checkpoints, resolved, options.step)
    split = open_split(resolved.config, "valid")
    measured = evaluate_perplexity(
        trained.model,
        build_task(resolved.config, resolved.shape),
        split,
        trained.tokenizer,
        Topology.single(),
        micro_batch_size=resolved.micro_batch_size,
        max_tokens=options.max_tokens,
    )
    print(f"step {trained.step}: {measured}")
    return 0
