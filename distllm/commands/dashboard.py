"""`distllm dashboard`: save the layout of the Weights & Biases dashboard on the server or in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distllm.commands.arguments import parse_options
from distllm.config.options import option


@dataclass(frozen=True)
class Options:
    """Options of `distllm dashboard`."""

    entity: str = option("", "user or team in Weights & Biases")
    project: str = option("distllm", "project in Weights & Biases, as logger.project")
    task: str = option("causal_lm", "the task whose measures are shown, as in task.name")
    out: str | None = option(None, "write the layout to this JSON file instead of the server")


def run(words: Sequence[str]) -> int:
    """Save the layout as a view of the project, or write it to a file."""
    options = parse_options("dashboard", Options, words)
    from distllm.errors import ConfigError
    from distllm.fsio import atomic_write_text
    from distllm.observe.workspace import workspace

    built = workspace(options.entity, options.project, options.task)
    if options.out is not None:
        atomic_write_text(Path(options.out), built._to_model().model_dump_json(indent=2) + "\n")
        print(f"written: {options.out}")
        return 0
    try:
        print(f"saved: {built.save().url}")
    except Exception as error:  # the client raises many types: no key, no network, no such project
        raise ConfigError(
            f"Weights & Biases did not accept the layout ({type(error).__name__}: {error})",
            where=f"{options.entity}/{options.project}",
            remedy="log in (wandb login) and give entity=..., or write it to a file with out=layout.json",
        ) from error
    return 0
