"""Pages that are generated when the site is built, from the code: keys, commands, errors, modules."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from mkdocs.structure.files import File

import distllm
from distllm import errors
from distllm.cli import COMMANDS
from distllm.commands.explain_error import page_of, title_of, verbatim
from distllm.config.keys import leaves
from distllm.config.schema import Config
from distllm.config.validate import describe
from distllm.messages import Message, all_messages

PACKAGE = Path(distllm.__file__).parent


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages (a hook of mkdocs)."""
    for name, content in pages().items():
        files.append(File.generated(config, name, content=content))
    return files


def pages() -> dict[str, str]:
    """Return the generated pages by path."""
    found = {"reference/configuration.md": configuration(), "reference/commands.md": commands()}
    return {**found, **error_pages(), **module_pages()}


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
            cells = (
                f"`{leaf.path}`",
                kind_of(leaf.annotation),
                f"`{leaf.default!r}`",
                describe(leaf.field),
            )
            lines.append(row(*cells, leaf.field.metadata["on_resume"]))
        lines.append("")
    return "\n".join(lines)


def kind_of(annotation: Any) -> str:
    """Return a type as people write it: names, and the values of a choice."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " or ".join("null" if one is NoneType else kind_of(one) for one in arguments)
    if origin is not None:
        inner = ", ".join("..." if one is Ellipsis else kind_of(one) for one in arguments)
        return f"{origin.__name__}[{inner}]"
    return getattr(annotation, "__name__", None) or str(annotation)


def commands() -> str:
    """Return every sub-command with what it takes."""
    lines = ["# Every command", ""]
    for name, what in COMMANDS.items():
        module = importlib.import_module(f"distllm.commands.{name}")
        lines += [f"## distllm {name}", "", f"{what[0].upper()}{what[1:]}.", ""]
        for action, (_, does) in getattr(module, "_ACTIONS", {}).items():
            lines += [f"- `distllm {name} {action}`: {does}"]
        lines.append("")
        for options in options_of(module):
            lines += [f"{inspect.getdoc(options)}", "", "| option | default | meaning |", "|---|---|---|"]
            for item in dataclasses.fields(options):
                lines.append(row(f"`{item.name}=`", f"`{item.default!r}`", describe(item)))
            lines.append("")
    return "\n".join(lines)


def options_of(module: Any) -> list[type]:
    """Return the options of a command, or of each of its actions, in the order of the file."""
    return [
        one
        for one in vars(module).values()
        if inspect.isclass(one) and one.__name__.endswith("Options") and dataclasses.is_dataclass(one)
    ]


def error_pages() -> dict[str, str]:
    """Return a page for each message, one for each class of error with its messages, and the index of all."""
    examples = json.loads((Path(__file__).parent / "errors.json").read_text(encoding="utf-8"))
    named = defaultdict(list)
    for message in all_messages():
        named[message.name].append(message)
    pages = {
        f"reference/errors/{name}.md": page_of(found, example=examples.get(name))
        for name, found in named.items()
    }
    index = [
        "# Every error",
        "",
        "A command prints its error with a name in brackets, which is the name of a page here and of "
        "`distllm explain error=NAME`. What is in `<angle brackets>` is a value.",
        "",
        *("| class | exit code | meaning |", "|---|---|---|"),
    ]
    for name, one in vars(errors).items():
        if not (inspect.isclass(one) and issubclass(one, errors.DistllmError)):
            continue
        what = (inspect.getdoc(one) or "").partition("\n")[0]
        index.append(row(f"[`{name}`]({name}.md)", str(one.exit_code), what))
        own = [message for found in named.values() for message in found if message.kind == name]
        head = [f"# {name}", "", what, "", f"Exit code {one.exit_code}.", ""]
        pages[f"reference/errors/{name}.md"] = "\n".join([*head, *_listed(own), ""])
    for room, found in sorted(_by_room(named).items()):
        index += ["", f"## {room}", "", *_listed(found)]
    return {"reference/errors/index.md": "\n".join([*index, ""]), **pages}


def _by_room(named: dict[str, list[Message]]) -> dict[str, list[Message]]:
    rooms = defaultdict(list)
    for found in named.values():
        for message in found:
            rooms[message.room].append(message)
    return rooms


def _listed(messages: list[Message]) -> list[str]:
    """Return a table of messages that link to their pages, each page once."""
    once = {message.name: message for message in reversed(messages)}
    if not once:
        return []
    rows = [row(f"[{verbatim(title_of(one))}]({name}.md)", f"`{name}`") for name, one in sorted(once.items())]
    return ["| message | name |", "|---|---|", *rows]


def module_pages() -> dict[str, str]:
    """Return a page for each room of the package: its modules, and what is public in them."""
    rooms = defaultdict(list)
    for path in sorted([*PACKAGE.rglob("*.py"), *(PACKAGE / "kernels").rglob("*.py")]):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in ("launch", "conf", "slurm") and parts[-1] != "__main__":
            rooms[parts[0] if len(parts) > 1 else "distllm"].append(path)
    index = ["# Every public function", "", "| room | what it holds |", "|---|---|"]
    made = {}
    for room, paths in sorted(rooms.items()):
        first = ast.get_docstring(
            ast.parse((PACKAGE / ("" if room == "distllm" else room) / "__init__.py").read_text())
        )
        what = (first or "what stands below all rooms").partition("\n")[0]
        index.append(row(f"[`{room}`]({room}.md)", what))
        lines = [f"# {room}", ""]
        for path in paths:
            lines += module_entry(path)
        made[f"reference/python/{room}.md"] = "\n".join(lines)
    return {"reference/python/index.md": "\n".join([*index, ""]), **made}


def module_entry(path: Path) -> list[str]:
    """Return what a module says of itself and of what is public in it; nothing where nothing is."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    entries = [line for node in tree.body for line in entry(node, "")]
    if not entries:
        return []
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    return [f"## {name}", "", *shown(ast.get_docstring(tree) or ""), "", *entries]


def entry(node: ast.stmt, owner: str) -> Iterator[str]:
    """Yield the lines of a public class, with its public methods, or function."""
    if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
        return
    name = f"{owner}{node.name}"
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        signature = f"{name}({ast.unparse(node.args)}){returns}"
    else:
        bases = ", ".join(map(ast.unparse, node.bases))
        signature = f"class {name}({bases})" if bases else f"class {name}"
    yield from [f"**`{signature}`**", "", *shown(ast.get_docstring(node) or ""), ""]
    if isinstance(node, ast.ClassDef):
        for item in node.body:
            yield from entry(item, f"{name}.")


def shown(docstring: str) -> list[str]:
    """Return a docstring as text: the entries of its sections become items of lists."""
    lines, section = list[str](), False
    for line in docstring.replace("<", "&lt;").splitlines():
        if line in ("Args:", "Attributes:", "Raises:", "Returns:", "Yields:"):
            section = True
            lines += [f"*{line[:-1]}*", ""]
        elif section and line.startswith("    ") and not line.startswith("     "):
            lines.append(f"- {line.strip()}")
        else:
            section = section and (not line or line.startswith(" "))
            lines.append(line if not section or not line else f"  {line.strip()}")
    return lines


def row(*cells: str) -> str:
    """Return a row of a table; what is between backticks stays as it is."""
    shown = (str(cell).replace("|", "\\|").replace("\n", " ").split("`") for cell in cells)
    safe = (
        (part if place % 2 else part.replace("<", "&lt;") for place, part in enumerate(cell))
        for cell in shown
    )
    return f"| {' | '.join(map('`'.join, safe))} |"
