"""The page of an error message, as Markdown: what it says, when it appears, and what to do."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from distllm.config.keys import leaves
from distllm.config.schema import Config
from distllm.messages import Message, messages_named

_NEXT = {
    64: "Correct what is named, then run the command again. Without a change it fails again.",
    65: "Bytes on disk are not what they must be. Nothing retries it: a retry would read the same bytes.",
    70: "Run the same command again: a run goes on from its newest whole checkpoint. `distllm train` and "
    "jobs do so by themselves, as often as `cluster.max_restarts` says.",
    74: "Make room, or permit what is refused, then run the same command again.",
    75: "Nothing is lost. Run the same command again to go on.",
}
_GUIDES = {
    "checkpoint": "reliability", "cluster": "clusters", "config": "configuration", "data": "preparation",
    "dist": "clusters", "environment": "clusters", "evaluate": "tasks", "export": "models", "infer": "models",
    "kernels": "kernels", "observe": "dashboards", "ops": "kernels", "plan": "planner",
    "report": "dashboards", "search": "search", "serve": "serving", "tasks": "tasks", "train": "reliability",
}  # fmt: skip


def show_error(name: str) -> None:
    """Print the page of one message; it is typeset on a terminal.

    Raises:
        ConfigError: no message is called so.
    """
    text = page_of(messages_named(name), links=False)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text))
    else:
        print(text)


def page_of(messages: Sequence[Message], *, example: str | None = None, links: bool = True) -> str:
    """Return the page of messages of one name.

    Args:
        messages: at least one.
        example: how it was once printed.
        links: whether other pages are links, from ``reference/errors/NAME.md``, or only named.
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
    """Return a text in one line whose signs Markdown leaves alone."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def title_of(message: Message) -> str:
    """Return the first cause, or the words of the name where the cause is nothing but a value."""
    cause = message.cause[0] if message.cause else ""
    return cause if re.sub(r"<[^<>]*>", "", cause).strip(" :") else message.name.replace("-", " ")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "?", "...")) else ".")


def _section(message: Message, *, several: bool) -> list[str]:
    """Return what one place of the source says, and when."""
    head = f"**{message.kind}**, exit code {message.exit_code}, made in `{message.path}`."
    lines = [f"## {Path(message.path).stem}", "", head, ""] if several else [head, ""]
    if message.means:
        lines += [_sentence(message.means).replace("``", "`").replace("<", "&lt;"), ""]
    lines += [f"- cause: {verbatim(cause)}" for cause in message.cause]
    lines += [f"- where: {verbatim(where)}" for where in message.where]
    lines += [f"- remedy: {verbatim(remedy)}" for remedy in message.remedy]
    lines.append("")
    if message.condition:
        lines += ["What decides, in the source:", "", "```python", message.condition, "```", ""]
    return lines


def _further(messages: Sequence[Message], links: bool) -> list[str]:
    """Return the keys that are named, the guide of the room, and the class of the error."""
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
