"""All error messages, found by parsing the source: name, text, and when each appears.

A message is a call that makes an error of `distllm.errors`, or adds a problem of a configuration. Its
name consists of the constant words of its cause: ``f"no run {run!r}"`` is ``no-run``. Messages of the same
words share a name. An error stores the line that made it; its name is looked up when it is shown.
`docs/reference.py` makes a page for each name, and ``distllm explain error=NAME`` shows it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from distllm import errors
from distllm.errors import ConfigError, ConfigProblems, DistllmError
from distllm.placeholders import placeholder
from distllm.registry import did_you_mean

PACKAGE = Path(__file__).parent
_LINKED = ("kernels", "launch", "slurm")
_ARTICLES = frozenset({"a", "an", "the"})
_LONGEST = 10
_VAGUE = 3
_LEAVES = (ast.Name, ast.Constant, ast.expr_context, ast.operator, ast.cmpop, ast.alias, ast.arg)
_NOTES = ("add", "check")
Function = ast.FunctionDef | ast.AsyncFunctionDef
Spell = Callable[[ast.expr], str]


@dataclass(frozen=True, slots=True)
class Message:
    """One place in the source that makes an error.

    Attributes:
        name: name of its page.
        kind: class of the error.
        cause, where, remedy: the texts as written, one per alternative; values are shown as ``<name>``.
        condition: the expression in the source under which it is raised; empty if there is none.
        means: what the docstring of the function says about it.
        path: the file, relative to the package's parent.
        lines: first and last line of the call.
    """

    name: str
    kind: str
    cause: tuple[str, ...]
    where: tuple[str, ...]
    remedy: tuple[str, ...]
    condition: str
    means: str
    path: str
    lines: tuple[int, int]

    @property
    def room(self) -> str:
        """The sub-package that it is in, or the module if it is a top-level one."""
        return Path(self.path).with_suffix("").parts[1]

    @property
    def exit_code(self) -> int:
        """Exit code of the process."""
        code: int = getattr(errors, self.kind).exit_code
        return code


def all_messages() -> list[Message]:
    """Return the messages of every file, in the order of paths and lines."""
    return [message for file in _files() for message in messages_of(file)]


def messages_named(name: str) -> list[Message]:
    """Return the messages that share a name.

    Raises:
        ConfigError: there is no message of this name.
    """
    words = [word.encode() for word in name.split("-")]
    texts = ((file, file.read_bytes().lower()) for file in _files())
    able = (file for file, text in texts if all(word in text for word in words))
    found = [message for file in able for message in messages_of(file) if message.name == name]
    if not found:
        known = all_messages()
        raise ConfigError(
            f"there is no error named {name!r}",
            where=f"error={name}",
            remedy=did_you_mean(name, {message.name for message in known}),
        )
    return found


def _files() -> list[Path]:
    """Return the files of the source, in order of their paths."""
    return sorted(
        {*PACKAGE.rglob("*.py"), *(file for room in _LINKED for file in (PACKAGE / room).rglob("*.py"))}
    )


def messages_of(file: Path, line: int | None = None) -> list[Message]:
    """Return the messages of one file, in the order of its lines; with ``line`` only those at that line."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    path = file.relative_to(PACKAGE.parent).as_posix()
    found = [_message(node, parents, path) for node, parents in _walk(tree, (), line) if _makes_error(node)]
    return sorted((one for one in found if one is not None), key=lambda one: one.lines)


def name_of(error: DistllmError) -> str | None:
    """Return the name of an error's message; None if it was made outside the package or has no name."""
    if error.made_at is None:
        return None
    file, line = Path(error.made_at[0]), error.made_at[1]
    if not file.is_relative_to(PACKAGE) or not file.is_file():
        return None
    around = messages_of(file, line)
    return around[-1].name if around else None


def shown(error: DistllmError) -> str:
    """Return an error as a command prints it: each message with its name, and how to explain it."""
    names = []
    text = str(error)
    for one in error.problems if isinstance(error, ConfigProblems) else (error,):
        name = name_of(one)
        if name is not None:
            names.append(name)
            first, *rest = str(one).split("\n")
            text = text.replace(str(one), "\n".join([f"{first}  [{name}]", *rest]), 1)
    if not names:
        return text
    return f"{text}\n  more:   distllm explain error={names[0] if len(names) == 1 else 'NAME'}"


def _walk(
    node: ast.AST, parents: tuple[ast.AST, ...], line: int | None
) -> Iterator[tuple[ast.AST, tuple[ast.AST, ...]]]:
    """Yield every inner node below ``node``, or only those at ``line``, with its parents, innermost last."""
    inside = (*parents, node)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _LEAVES):  # most nodes, and no call
            continue
        if line is None or getattr(child, "lineno", 0) <= line <= getattr(child, "end_lineno", line):
            yield child, inside
            yield from _walk(child, inside, line)


def _makes_error(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name):
        kind = getattr(errors, node.func.id, None)
        return isinstance(kind, type) and issubclass(kind, DistllmError) and kind is not ConfigProblems
    given = {keyword.arg for keyword in node.keywords}
    return isinstance(node.func, ast.Attribute) and node.func.attr in _NOTES and "remedy" in given


def _message(node: ast.AST, parents: tuple[ast.AST, ...], path: str) -> Message | None:
    """Return the message of a call; None if it only passes on a cause that it was given."""
    assert isinstance(node, ast.Call)
    function = next((one for one in reversed(parents) if isinstance(one, Function)), None)
    kind, checks = "ConfigError", False
    if isinstance(node.func, ast.Name):
        kind = node.func.id
    elif isinstance(node.func, ast.Attribute):
        checks = node.func.attr == "check"
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    cause = node.args[1 if checks else 0] if len(node.args) > checks else given.get("cause")
    causes = _texts(cause, function, _in_braces)
    if not any(map(_words, causes)) and isinstance(cause, ast.Name) and _is_argument(cause.id, function):
        return None

    def spell(value: ast.expr) -> str:
        return placeholder(value, parents[0], lambda text, within: _texts(text, within, spell))

    return Message(
        name=_name(causes, path, function),
        kind=kind,
        cause=_texts(cause, function, spell),
        where=_texts(given.get("where", given.get("keys")), function, spell),
        remedy=_texts(given.get("remedy"), function, spell),
        condition=f"not ({ast.unparse(node.args[0])})" if checks else _condition(node, parents),
        means=_meaning(function, kind),
        path=path,
        lines=(node.lineno, node.end_lineno or node.lineno),
    )


def _name(causes: tuple[str, ...], path: str, function: Function | None) -> str:
    """Return the constant words of a cause, joined by hyphens; short ones also get the name of a value."""
    cause = causes[0] if causes else ""
    words = [word for word in _words(cause) if word not in _ARTICLES][:_LONGEST]
    value = re.search(r"\{(?:\w+\.)*(\w+)\}", cause)
    if 2 <= len(words) <= _VAGUE and value is not None and cause.startswith(("{", "cannot")):
        subject = [word for word in _words(value[1].replace("_", " ")) if word not in words]
        words = [*words, *subject] if cause.startswith("cannot") else [*subject, *words]
    if not words and function is not None:
        words = _words(function.name.replace("_", " "))
    return "-".join(words if len(words) > 1 else [*_words(Path(path).stem.replace("_", " ")), *words])


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", re.sub(r"\{[^{}]*\}", " ", text).lower())


def _is_argument(name: str, function: Function | None) -> bool:
    if function is None:
        return False
    arguments = function.args
    return name in {one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}


def _in_braces(value: ast.expr) -> str:
    return f"{{{ast.unparse(value)}}}"


def _texts(node: ast.expr | None, function: Function | None, spell: Spell) -> tuple[str, ...]:
    """Return a string as it is written, or each of its alternatives; ``spell`` formats the values in it."""
    if node is None or (isinstance(node, ast.Constant) and node.value is None):
        return ()
    match node:
        case ast.Constant(value=value):
            return (str(value),)
        case ast.IfExp(body=one, orelse=other):
            return (*_texts(one, function, spell), *_texts(other, function, spell))
        case ast.BoolOp(values=values):
            return tuple(text for value in values for text in _texts(value, function, spell))
        case ast.JoinedStr(values=values):
            return ("".join(_texts(value, function, spell)[0] for value in values),)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return ("".join((_texts(side, function, spell) or ("",))[0] for side in (left, right)),)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return (", ".join(text for item in items for text in _texts(item, function, spell)),)
        case ast.FormattedValue(value=inner, conversion=conversion):
            if isinstance(inner, ast.IfExp) and isinstance(inner.body, ast.Constant):
                return _texts(inner, function, spell)[:1]
            quote = "'" if conversion == ord("r") else ""
            return (f"{quote}{spell(inner)}{quote}",)
        case ast.Call(func=ast.Name(id=called)) if called == did_you_mean.__name__:
            return ("did you mean <the closest name>?", "use one of: <all names>")
        case ast.Name(id=name) if assigned := _assigned(name, function):
            return _texts(assigned, None, spell)
    return (spell(node),)


def _assigned(name: str, function: Function | None) -> ast.expr | None:
    """Return the expression that a function assigns to a variable, if there is one."""
    for node in ast.walk(function) if function is not None else ():
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in node.targets
        ):
            return node.value
    return None


def _condition(node: ast.AST, parents: tuple[ast.AST, ...]) -> str:
    """Return the condition of the innermost branch or handler around a call."""
    child = node
    for parent in reversed(parents):
        if isinstance(parent, Function):
            break
        if isinstance(parent, ast.ExceptHandler):
            return f"except {ast.unparse(parent.type)}" if parent.type is not None else ""
        if isinstance(parent, ast.If | ast.IfExp) and child is not parent.test:
            test = ast.unparse(parent.test)
            body = parent.body if isinstance(parent.body, list) else [parent.body]
            return f"if {test}" if child in body else f"if not ({test})"
        child = parent
    return ""


def _meaning(function: Function | None, kind: str) -> str:
    """Return what a function's docstring says about an error, or else its summary."""
    text = ast.get_docstring(function) if function is not None else None
    if not text:
        return ""
    said = re.search(rf"^    {kind}: (.+?)(?=^    \w+: |^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    return " ".join((said[1] if said else text.partition("\n\n")[0]).split())
