"""`distllm dashboard`: the layout of the Weights & Biases dashboard, from code to the server or a file."""

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
    task: str = option("causal_lm", "whose measures are shown, as task.name")
    out: str | None = option(None, "write the layout to this JSON file, and reach no server")


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
    except Exception as error:  # whatever the client raises: no key, no network, no such project
        raise ConfigError(
            f"Weights & Biases did not take the layout ({type(error).__name__}: {error})",
            where=f"{options.entity}/{options.project}",
            remedy="log in (wandb login) and give entity=..., or write it to a file with out=layout.json",
        ) from error
    return 0
