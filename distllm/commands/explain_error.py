"""The page of an error message as Markdown: its text, when it appears, and what to do."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from distllm.config.keys import leaves
from distllm.config.schema import Config
from distllm.messages import Message, messages_named

_NEXT = {
    64: "Correct what the message names, then run the command again. Without a change it fails again.",
    65: "Data on disk is damaged or not what was expected. It is not retried: a retry reads the same data.",
    70: "Run the same command again: a run resumes from its newest valid checkpoint. `distllm train` and "
    "jobs do so by themselves, up to `cluster.max_restarts` times.",
    74: "Free disk space or grant the missing permission, then run the same command again.",
    75: "Nothing is lost. Run the same command again to resume.",
}
_GUIDES = {
    "checkpoint": "reliability", "cluster": "clusters", "config": "configuration", "data": "preparation",
    "dist": "clusters", "environment": "clusters", "evaluate": "tasks", "export": "models", "infer": "models",
    "kernels": "kernels", "observe": "dashboards", "ops": "kernels", "plan": "planner",
    "report": "dashboards", "search": "search", "serve": "serving", "tasks": "tasks", "train": "reliability",
}  # fmt: skip


def show_error(name: str) -> None:
    """Print the page of one message; it is formatted if the output is a terminal.

    Raises:
        ConfigError: there is no message of this name.
    """
    text = page_of(messages_named(name), links=False)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text))
    else:
        print(text)


def page_of(messages: Sequence[Message], *, example: str | None = None, links: bool = True) -> str:
    """Return the page of the messages that share a name.

    Args:
        messages: at least one.
        example: the message as it was once printed.
        links: whether to link other pages, relative to ``reference/errors/NAME.md``, or only name them.
    """
    lines = [f"# {verbatim(title_of(messages[0]))}", ""]
    if example is not None:
        lines += ["```text", f"distllm: {example}", "```", ""]
    for message in messages:
        lines += _section(message, several=len(messages) > 1)
    lines += ["## What to do", ""]
    lines += [f"- {_NEXT[code]}" for code in sorted({message.exit_code for message in messages})]
    lines += [f"- {line}" for line in _further(messages, links)]
    return "\n".join([*lines, ""])


def verbatim(text: str) -> str:
    """Return a text as one line of inline code, which Markdown does not interpret."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def title_of(message: Message) -> str:
    """Return the first cause, or the words of the name if the cause consists of a value only."""
    cause = message.cause[0] if message.cause else ""
    return cause if re.sub(r"<[^<>]*>", "", cause).strip(" :") else message.name.replace("-", " ")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "?", "...")) else ".")


def _section(message: Message, *, several: bool) -> list[str]:
    """Return the texts that one place of the source raises, and the condition."""
    head = f"**{message.kind}**, exit code {message.exit_code}, made in `{message.path}`."
    lines = [f"## {Path(message.path).stem}", "", head, ""] if several else [head, ""]
    if message.means:
        lines += [_sentence(message.means).replace("``", "`").replace("<", "&lt;"), ""]
    lines += [f"- cause: {verbatim(cause)}" for cause in message.cause]
    lines += [f"- where: {verbatim(where)}" for where in message.where]
    lines += [f"- remedy: {verbatim(remedy)}" for remedy in message.remedy]
    lines.append("")
    if message.condition:
        lines += ["The condition in the source:", "", "```python", message.condition, "```", ""]
    return lines


def _further(messages: Sequence[Message], links: bool) -> list[str]:
    """Return the keys that the messages name, and the guides of their parts of the package."""
    said = " ".join(text for message in messages for text in (*message.where, *message.remedy))
    named = [key for key in (leaf.path for leaf in leaves(Config)) if re.search(rf"(?<![\w.]){key}\b", said)]
    if links:
        keys = [f"[`{key}`](../configuration.md#{key.rpartition('.')[0]})" for key in named if "." in key]
    else:
        keys = [f"`distllm explain {key}`" for key in named]
    lines = [f"Keys: {', '.join(keys)}."] if keys else []
    guides = dict.fromkeys(_GUIDES[one.room] for one in messages if one.room in _GUIDES)
    if guides:
        pages = [f"[{guide}](../../{guide}.md)" if links else f"docs/{guide}.md" for guide in guides]
        lines.append(f"More: {', '.join(pages)}.")
    return lines
