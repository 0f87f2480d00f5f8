"""`distllm sweep`: a Weights & Biases sweep whose agent runs `distllm train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distllm.commands.arguments import parse_options
from distllm.config.options import option

_PREFIX = "sweep."
_HELP = """usage: distllm sweep KEY=low..high KEY=a,b,c KEY=* [key=value ...] [sweep.NAME=value ...]

varies keys that are given a range, a list or *, and passes the other overrides on to distllm train:

  sweep.method=     grid, random or bayes [default 'bayes']
  sweep.metric=     metric to optimize; empty: eval/<task>/loss [default '']
  sweep.goal=       minimize or maximize [default 'minimize']
  sweep.out=        the file to write [default 'sweep.yaml']"""


@dataclass(frozen=True)
class Options:
    """Options of `distllm sweep`, besides overrides, as ``sweep.NAME``."""

    method: Literal["grid", "random", "bayes"] = option("bayes", "how the next trial is chosen")
    metric: str = option("", "metric to optimize; empty: eval/<task>/loss")
    goal: Literal["minimize", "maximize"] = option("minimize", "whether lower or higher is better")
    out: str = option("sweep.yaml", "the file to write")


def run(words: Sequence[str]) -> int:
    """Write the sweep's YAML and print how to start it."""
    if any(word in ("-h", "--help") for word in words):
        print(_HELP)
        return 0
    own = [word.removeprefix(_PREFIX) for word in words if word.startswith(_PREFIX)]
    options = parse_options("sweep", Options, own)
    from distllm.config.sweep import sweep
    from distllm.config.yaml import to_yaml
    from distllm.fsio import atomic_write_text

    overrides = [word for word in words if not word.startswith(_PREFIX)]
    found = sweep(overrides, method=options.method, metric=options.metric, goal=options.goal)
    atomic_write_text(Path(options.out), to_yaml(found))
    print(f"written: {options.out}\n\nstart it:\n  wandb sweep {options.out}\n  wandb agent SWEEP_ID")
    return 0
