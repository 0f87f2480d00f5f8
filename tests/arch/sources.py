"""What the architecture tests look at: every Python file of the project, parsed once."""

import ast
import io
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("distllm", "kernels", "launch", "conf", "slurm")
_NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def python_files(*rooms: str) -> tuple[Path, ...]:
    """Real files below the top-level directories ``rooms``; symbolic links are not followed."""
    files = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py")) if not _linked(path)]
    assert files, f"no Python files below {rooms}: the test looks in the wrong place"
    return tuple(files)


def code_files() -> tuple[Path, ...]:
    """Every file that ships, or runs a cluster."""
    files = python_files(*CODE)
    assert len(files) >= 50, f"only {len(files)} files of code found"
    return files


def files_of_tests() -> tuple[Path, ...]:
    return python_files("tests")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def statement_lines(path: Path) -> int:
    """Lines that hold code: neither blank nor comment nor docstring, which would let prose count as work."""
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type not in _NO_CODE:
            held |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            held -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return len(held)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[tuple[str, Function, bool]]:
    """Yield ``(place, function, public)``; public means reachable by names without an underscore."""
    yield from _functions(tree(path), name_of(path), not path.stem.startswith("_") or path.stem == "__init__")


def _functions(node: ast.AST, place: str, public: bool) -> Iterator[tuple[str, Function, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            here = f"{place}:{child.lineno} {child.name}"
            yield here, child, public and not child.name.startswith("_")
            yield from _functions(child, place, False)
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, place, public and not child.name.startswith("_"))
        else:
            yield from _functions(child, place, public)


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Yield ``(line, module)`` for each absolute import, wherever it stands in the file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""


def _linked(path: Path) -> bool:
    return any(parent.is_symlink() for parent in (path, *path.parents) if parent.is_relative_to(ROOT))
