"""`distllm doctor`: what keeps this machine from training, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distllm.commands.arguments import parse_options
from distllm.config.options import option


@dataclass(frozen=True)
class Options:
    """Options of `distllm doctor`."""

    dir: str = option("runs", "directory whose disk is checked")
    deep: bool = option(False, "also import torch and deepspeed in a process of its own")


def run(words: Sequence[str]) -> int:
    """Print the findings; return 1 if something must be fixed before training."""
    options = parse_options("doctor", Options, words)
    from distllm.doctor import diagnose, exit_code, render

    findings = diagnose(Path(options.dir), deep=options.deep)
    print(render(findings))
    return exit_code(findings)
