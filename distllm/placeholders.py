"""Placeholders for the values in a message: ``f"no run {run!r}"`` becomes ``no run '<run>'``.

A constant of the module, and a text that a function returns, are shown as they are. Other values are shown
as the shortest word that the source has for them, in angle brackets.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).parent
_PLAIN = {"error": "reason", "strerror": "reason", "filename": "file", "stdout": "output"}
_OWNED = frozenset({"name", "path", "text", "parent"})
_OF_TEXT = frozenset(
    {"count", "get", "item", "items", "join", "lower", "removeprefix", "removesuffix", "replace", "split"}
    | {"strip", "sum", "upper", "values"}
)
_SHAPE = re.compile(r"_[A-Z]{1,4}\d?$")
Texts = Callable[[ast.expr, ast.FunctionDef], tuple[str, ...]]


def placeholder(node: ast.expr, module: ast.AST, texts: Texts) -> str:
    """Return the placeholder for the value of an expression.

    Args:
        node: the expression.
        module: the module that contains it.
        texts: returns the alternatives of a text that a function returns.
    """
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        function = _definition(node.func.id, module)
        returned = _only_return(function) if isinstance(function, ast.FunctionDef) else None
        if isinstance(function, ast.FunctionDef) and isinstance(returned, ast.JoinedStr | ast.Constant):
            return texts(returned, function)[0]
    if isinstance(node, ast.Name) and node.id.isupper():
        value = _definition(node.id, module)
        if isinstance(value, ast.Constant) and isinstance(value.value, str | int | float):
            return str(value.value)
    return f"<{noun(node)}>"


def noun(node: ast.AST) -> str:
    """Return the shortest word of the source for the value of an expression."""
    match node:
        case ast.Constant(value=value):
            return str(value)
        case ast.Name(id=name):
            return _plain(name)
        case ast.Attribute(value=owner, attr=name):
            generic = name in _OWNED and not (isinstance(owner, ast.Name) and owner.id in ("self", "options"))
            return noun(owner) if generic else _plain(name)
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            return _plain(name)
        case ast.Call():
            return _noun_of_call(node)
        case ast.BinOp(left=left, right=right):
            return noun(right if isinstance(left, ast.Constant) else left)
        case ast.BoolOp(values=[first, *_]):
            return noun(first)
        case ast.IfExp(body=first) | ast.Subscript(value=first) | ast.Starred(value=first):
            return noun(first)
        case ast.GeneratorExp(generators=[loop, *_]) | ast.ListComp(generators=[loop, *_]):
            return noun(loop.iter)
    return "value"


def _noun_of_call(node: ast.Call) -> str:
    first = node.args[0] if node.args else None
    match node.func:
        case ast.Name(id="len") if first is not None:
            return f"number of {noun(first)}"
        case ast.Name(id="map") | ast.Attribute(attr="join"):
            return noun(node.args[-1])
        case ast.Attribute(attr="get") if first is not None:
            return noun(first)
        case ast.Attribute(value=owner, attr=name) if name in _OF_TEXT:
            return noun(owner)
        case ast.Attribute(attr=name):
            return _plain(name)
    # str(x), format_bytes(x), max(1, x): take the name of the argument.
    given = next((one for one in node.args if not isinstance(one, ast.Constant)), None)
    return noun(given if given is not None else node.func)


def _plain(name: str) -> str:
    word = _SHAPE.sub("", name).strip("_")
    return _PLAIN.get(word, word.lower())


def _only_return(function: ast.FunctionDef) -> ast.expr | None:
    returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    return returned[0] if len(returned) == 1 else None


def _definition(name: str, module: ast.AST) -> ast.AST | None:
    """Return the function or value that a module defines or imports under a name."""
    for node in getattr(module, "body", ()):
        match node:
            case ast.FunctionDef(name=found) if found == name:
                return node
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                return value
            case ast.ImportFrom(module=str(source), names=names) if source.startswith("distllm."):
                if any(one.name == name and one.asname is None for one in names):
                    return _definition(name, _module(source))
    return None


@lru_cache
def _module(name: str) -> ast.Module:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))
