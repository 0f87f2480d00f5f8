"""Commands with several actions, such as `distllm data verify`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from distllm.errors import ConfigError
from distllm.registry import did_you_mean

Actions: TypeAlias = Mapping[str, tuple[Callable[[Sequence[str]], None], str]]
"""By name: the function that runs the action, and its line of help."""


def run_action(command: str, takes: str, actions: Actions, words: Sequence[str]) -> int:
    """Run the action that the first word names, or print the help; return the exit code.

    Args:
        command: name of the sub-command.
        takes: what follows the action on the command line, for the help.
        actions: the actions of the command.
        words: the command line after the command.

    Raises:
        ConfigError: there is no such action.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        lines = [f"  {name:<9}{what}" for name, (_, what) in actions.items()]
        print("\n".join([f"usage: distllm {command} ACTION {takes}", "", *lines]))
        return 0
    name, *rest = words
    if name not in actions:
        raise ConfigError(
            f"unknown action {name!r}", where=f"distllm {command}", remedy=did_you_mean(name, actions)
        )
    gc.enable()
    actions[name][0](rest)
    return 0
