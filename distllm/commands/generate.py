"""`distllm generate`: continue a prompt with a trained model."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass

from distllm.commands.arguments import parse_options
from distllm.config.options import option


@dataclass(frozen=True)
class Options:
    """What `distllm generate` takes."""

    run: str | None = option(None, "name or directory of the run")
    prompt: str = option("", "text to continue; empty starts a document")
    step: int | None = option(None, "checkpoint to use; null takes the newest", minimum=0)
    max_tokens: int = option(100, "longest continuation", minimum=1)
    temperature: float = option(0.8, "sampling temperature; 0 is greedy", minimum=0.0)
    top_k: int | None = option(None, "sample among the k likeliest tokens", minimum=1)
    top_p: float | None = option(
        None, "sample among the likeliest tokens of this mass", minimum=0.0, maximum=1.0
    )
    seed: int = option(0, "root of the random stream", minimum=0)
    runs_dir: str = option("runs", "directory that holds run directories")


def run(words: Sequence[str]) -> int:
    """Print the prompt and its continuation."""
    options = parse_options("generate", Options, words)
    from distllm.commands.runs import require, run_of

    stored = run_of(require(options.run, "run", "generate"), options.runs_dir)
    resolved = stored.resolved()
    gc.enable()
    from distllm.infer.generate import sample_text
    from distllm.infer.load import load_trained

    trained = load_trained(stored.directory.checkpoints, resolved, options.step)
    text = sample_text(
        trained.model,
        trained.tokenizer,
        options.prompt,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
    )
    print(options.prompt + text)
    return 0
