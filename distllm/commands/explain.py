"""`distllm explain`: where each value of a configuration or of a run came from, or what an error means."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distllm.commands.arguments import parse_config_arguments
from distllm.commands.explain_error import show_error
from distllm.commands.settle import settle
from distllm.config.compose import composition_of
from distllm.config.explain import explanation, read_explanation, render, select
from distllm.errors import ConfigError, ConfigProblems
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
    table, unsettled = _table(overrides, arguments.config_dir)
    try:
        shown = select(table, wanted[0]) if wanted else table
    except ConfigError as unknown:
        if unsettled is None or "." in wanted[0] or str(unknown.remedy).startswith("did you mean"):
            raise
        # The key may be a derived quantity (names of one word), which could not be computed.
        raise ConfigProblems([*unsettled.problems, unknown]) from None
    print(render(shown))
    if unsettled is not None and not wanted:
        print(
            f"distllm: derived quantities are left out, because the configuration is not valid: {unsettled}",
            file=sys.stderr,
        )
    return 0


def _table(
    overrides: list[str], config_dir: Path | None
) -> tuple[dict[str, dict[str, Any]], ConfigProblems | None]:
    """Return the values and origins, and the problems if nothing can be derived from the configuration."""
    runs = [word.removeprefix("run=") for word in overrides if word.startswith("run=")]
    if not runs:
        try:
            return explanation(*settle(overrides, config_dir, None, need_dataset=False)), None
        except ConfigProblems as problems:
            return explanation(composition_of(overrides, config_dir=config_dir), None), problems
    if len(overrides) > 1:
        raise ConfigError(
            "a finished run explains itself and takes no overrides",
            where="command line",
            remedy="drop the overrides, or drop run=",
        )
    return read_explanation(locate_run(runs[0]).explanation), None
