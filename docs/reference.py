"""Pages that are generated when the site is built: every key, command and error message, from the code."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

import distllm
from distllm import errors
from distllm.cli import COMMANDS
from distllm.config.keys import leaves
from distllm.config.schema import Config
from distllm.config.validate import describe

PACKAGE = Path(distllm.__file__).parent


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages (a hook of mkdocs)."""
    for name, content in pages().items():
        files.append(File.generated(config, name, content=content))
    return files


def pages() -> dict[str, str]:
    """Return the generated pages by path."""
    found = {"reference/configuration.md": configuration(), "reference/commands.md": commands()}
    return {**found, **error_pages()}


def configuration() -> str:
    """Return a table for each group of keys: type, default, meaning, and what a change means on resume."""
    groups = defaultdict(list)
    for leaf in leaves(Config):
        groups[leaf.path.rpartition(".")[0] or "top level"].append(leaf)
    lines = ["# Every configuration key", ""]
    for group, found in groups.items():
        lines += [
            f"## {group}",
            "",
            "| key | type | default | meaning | on resume |",
            "|---|---|---|---|---|",
        ]
        for leaf in found:
            kind = getattr(leaf.annotation, "__name__", None) or str(leaf.annotation)
            cells = (f"`{leaf.path}`", f"`{kind}`", f"`{leaf.default!r}`", describe(leaf.field))
            lines.append(row(*cells, leaf.field.metadata["on_resume"]))
        lines.append("")
    return "\n".join(lines)


def commands() -> str:
    """Return every sub-command with what it takes."""
    lines = ["# Every command", ""]
    for name, what in COMMANDS.items():
        module = importlib.import_module(f"distllm.commands.{name}")
        lines += [f"## distllm {name}", "", f"{what[0].upper()}{what[1:]}.", ""]
        options = getattr(module, "Options", None)
        if options is not None and dataclasses.is_dataclass(options):
            lines += ["| option | default | meaning |", "|---|---|---|"]
            for item in dataclasses.fields(options):
                lines.append(row(f"`{item.name}=`", f"`{item.default!r}`", describe(item)))
            lines.append("")
    return "\n".join(lines)


def error_pages() -> dict[str, str]:
    """Return a page for each class of error: meaning, exit code, and every message with its remedy."""
    classes = {
        name: one
        for name, one in vars(errors).items()
        if inspect.isclass(one) and issubclass(one, errors.DistllmError)
    }
    raised = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, message, remedy in messages(path):
            raised[name].append((message, remedy, path.relative_to(PACKAGE.parent)))
    index = ["# Errors", "", "| class | exit code | meaning |", "|---|---|---|"]
    made = {}
    for name, one in classes.items():
        what = (inspect.getdoc(one) or "").partition("\n")[0]
        index.append(row(f"[`{name}`]({name}.md)", str(one.exit_code), what))
        lines = [f"# {name}", "", what, "", f"Exit code {one.exit_code}.", ""]
        lines += ["| message | remedy | raised in |", "|---|---|---|"] if raised[name] else []
        lines += [row(message, remedy, f"`{path}`") for message, remedy, path in raised[name]]
        made[f"reference/errors/{name}.md"] = "\n".join([*lines, ""])
    return {"reference/errors/index.md": "\n".join([*index, ""]), **made}


def messages(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (class, message, remedy) of each error that a file makes; values stand as `{name}`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
            continue
        if hasattr(errors, node.func.id) and (message := text_of(node.args[0])):
            remedies = [text_of(word.value) for word in node.keywords if word.arg == "remedy"]
            yield node.func.id, message, (remedies or [""])[0]


def text_of(node: ast.expr) -> str:
    """Return a string or f-string as it is written, without its quotes."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    return str(node.value) if isinstance(node, ast.Constant) else ""


def row(*cells: str) -> str:
    """Return a row of a table."""
    shown = (str(cell).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;") for cell in cells)
    return f"| {' | '.join(shown)} |"
