"""`distllm prepare`: raw text to a tokenizer and shards."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

from distllm.commands.arguments import parse_config_arguments
from distllm.commands.train import show_configuration
from distllm.config.checks import check_prepare
from distllm.config.compose import compose
from distllm.config.preview import raise_early
from distllm.config.problems import Problems
from distllm.units import format_bytes, format_count


def run(words: Sequence[str]) -> int:
    """Prepare a dataset and print what it holds."""
    arguments = parse_config_arguments("prepare", "Raw text to a tokenizer and shards.", words)
    if arguments.show:
        show_configuration(arguments.overrides, arguments.config_dir)
        return 0
    raise_early(arguments.overrides, arguments.config_dir, check_prepare)
    problems = Problems()
    config = compose(arguments.overrides, config_dir=arguments.config_dir, problems=problems)
    check_prepare(config, problems)
    problems.raise_if_any()
    gc.enable()
    from distllm.data.pipeline import prepare
    from distllm.display import stage_reporter

    with stage_reporter() as report:
        manifest = prepare(config, report)
    total = manifest.total
    print(f"dataset {Path(config.data.out)}: {total.kept} documents kept of {total.read} read")
    for rule, count in total.dropped.items():
        print(f"  dropped by {rule}: {count}")
    for name, split in manifest.splits.items():
        print(
            f"  {name}: {split.documents} documents, {format_bytes(split.text_bytes)} of text, "
            f"{format_count(split.tokens)} tokens in {len(split.shards)} shard(s)"
        )
    print(f"  tokenizer: {manifest.vocab_size} ids, fingerprint {manifest.tokenizer_fingerprint}")
    return 0
