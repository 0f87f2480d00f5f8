"""`distllm explain`: where a value came from, before a run or out of a run's directory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distllm.commands.arguments import parse_config_arguments
from distllm.commands.explain_error import show_error
from distllm.commands.settle import settle
from distllm.config.explain import explanation, render, select
from distllm.errors import ConfigError
from distllm.fsio import read_json
from distllm.train.run_directory import locate_run

_WHAT = (
    "Say where a value came from: distllm explain [KEY|GROUP] [overrides], or with run=NAME; "
    "or what an error means: distllm explain error=NAME."
)


def run(words: Sequence[str]) -> int:
    """Print the origin of one key, one group, or everything; or the page of an error."""
    if len(words) == 1 and words[0].startswith("error="):
        show_error(words[0].removeprefix("error="))
        return 0
    arguments = parse_config_arguments("explain", _WHAT, words)
    wanted = [word for word in arguments.overrides if "=" not in word]
    overrides = [word for word in arguments.overrides if "=" in word]
    if len(wanted) > 1:
        raise ConfigError(
            f"one key at a time, not {', '.join(wanted)}",
            where="command line",
            remedy="give one key, one group such as optim, or none for everything",
        )
    table = _table(overrides, arguments.config_dir)
    print(render(select(table, wanted[0]) if wanted else table))
    return 0


def _table(overrides: list[str], config_dir: Any) -> dict[str, dict[str, Any]]:
    runs = [word.removeprefix("run=") for word in overrides if word.startswith("run=")]
    if not runs:
        composition, resolved = settle(overrides, config_dir, None, need_dataset=False)
        return explanation(composition, resolved)
    if len(overrides) > 1:
        raise ConfigError(
            "a finished run explains itself and takes no overrides",
            where="command line",
            remedy="drop the overrides, or drop run=",
        )
    table: dict[str, dict[str, Any]] = read_json(locate_run(runs[0]).path / "explain.json")
    return table
