"""`distllm prepare`: turn raw text into a tokenizer and shards."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from distllm.commands.arguments import parse_config_arguments
from distllm.commands.train import show_configuration
from distllm.config.checks_prepare import check_prepare
from distllm.config.compose import compose
from distllm.config.preview import raise_early
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.display import Progress, Report
from distllm.machine import held_memory
from distllm.units import format_bytes, format_count

_DRY_RUN = "--dry-run"


def run(words: Sequence[str]) -> int:
    """Prepare a dataset and print a summary of every source."""
    flags = {_DRY_RUN: "read, clean and deduplicate only, and report what each rule would do"}
    what = "Turn raw text into a tokenizer and shards."
    arguments = parse_config_arguments("prepare", what, words, flags)
    if arguments.show:
        show_configuration(arguments.overrides, arguments.config_dir)
        return 0
    raise_early(arguments.overrides, arguments.config_dir, check_prepare)
    problems = Problems()
    config = compose(arguments.overrides, config_dir=arguments.config_dir, problems=problems)
    check_prepare(config, problems)
    problems.raise_if_any()
    gc.enable()
    # Arrow's own allocators keep freed memory; worker processes inherit this choice.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if _DRY_RUN in arguments.flags:
        _rehearse(config)
    else:
        _prepare(config)
    return 0


def _rehearse(config: Config) -> None:
    from distllm.data.pipeline import rehearse
    from distllm.data.pipeline.report import describe
    from distllm.display import stage_reporter

    with stage_reporter() as report:
        reports = rehearse(config, report)
    print("dry run: no dataset was written")
    print("\n".join(describe(reports)))


def _prepare(config: Config) -> None:
    from distllm.data.pipeline import prepare, work_directory
    from distllm.data.pipeline.report import REPORT_FILE, describe, from_json
    from distllm.display import stage_reporter

    held: dict[str, int] = {}
    with stage_reporter() as report:
        manifest = prepare(config, _noting_memory(held, report))
    out = Path(config.data.out)
    total = manifest.total
    print(f"dataset {out}: {total.kept} documents kept of {total.read} read")
    print("\n".join(describe(from_json(json.loads((out / REPORT_FILE).read_text(encoding="utf-8"))))))
    for source, splits in manifest.sources.items():
        for name, split in splits.items():
            print(
                f"  {source}/{name}: {split.documents} documents, {format_bytes(split.text_bytes)} of text, "
                f"{format_count(split.tokens)} tokens in {len(split.shards)} shard(s)"
            )
    print(f"  tokenizer: {manifest.vocab_size} ids, fingerprint {manifest.tokenizer_fingerprint}")
    if held:
        print("  peak memory of this process: " + ", ".join(_amounts(held)))
    if (work := work_directory(config)).is_dir():
        print(f"  finished stages are kept in {work} for the next preparation; you may remove it")


def _noting_memory(held: dict[str, int], report: Report) -> Report:
    """Return a reporter that also stores in ``held`` the most memory seen at the reports of each stage."""

    def note(progress: Progress) -> None:
        held[progress.stage] = max(held.get(progress.stage, 0), held_memory())
        report(progress)

    return note


def _amounts(held: Mapping[str, int]) -> Iterator[str]:
    return (f"{stage} {format_bytes(size)}" for stage, size in held.items())
