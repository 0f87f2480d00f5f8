"""The bars of the code: sizes, types, docstrings, and that tests keep up with code."""

import ast
import re

from arch.sources import (
    ROOT,
    code_files,
    files_of_tests,
    functions,
    lines,
    name_of,
    python_files,
    statement_lines,
    tree,
)

MAX_FILE, MAX_FUNCTION, P95_FUNCTION, MAX_ENTRY_POINT = 400, 80, 45, 40
UNFINISHED = re.compile(
    "|".join(rf"\b{a}{b}\b" for a, b in (("TO", "DO"), ("FIX", "ME"), ("X", "XX"), ("HA", "CK")))
)


def function_lengths():
    found = [
        (node.end_lineno - node.lineno + 1, place)
        for path in code_files()
        for place, node, _ in functions(path)
    ]
    assert len(found) >= 200, f"only {len(found)} functions found"
    return sorted(found)


def test_files_stay_short():
    long = [f"{name_of(p)}: {lines(p)}" for p in (*code_files(), *files_of_tests()) if lines(p) > MAX_FILE]
    assert not long, f"longer than {MAX_FILE} lines: {long}"


def test_no_function_is_long():
    long = [f"{place}: {length}" for length, place in function_lengths() if length > MAX_FUNCTION]
    assert not long, f"longer than {MAX_FUNCTION} lines: {long}"


def test_nearly_all_functions_are_short():
    lengths = function_lengths()
    index = -(-95 * len(lengths) // 100) - 1
    above = [f"{place}: {length}" for length, place in lengths if length > P95_FUNCTION]
    assert lengths[index][0] <= P95_FUNCTION, f"95th percentile above {P95_FUNCTION} lines: {above}"


def test_launch_entry_points_are_thin():
    long = [f"{name_of(p)}: {lines(p)}" for p in python_files("launch") if lines(p) > MAX_ENTRY_POINT]
    assert not long, f"longer than {MAX_ENTRY_POINT} lines: {long}"


def test_every_function_is_fully_annotated():
    missing = []
    for path in code_files():
        for place, node, _ in functions(path):
            arguments = node.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            named += [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
            bare = [a.arg for a in named if a.annotation is None and a.arg not in ("self", "cls")]
            bare += [] if node.returns is not None else ["return"]
            missing += [f"{place}({', '.join(bare)})"] if bare else []
    assert not missing, f"not annotated: {missing}"


def test_everything_public_has_a_docstring():
    missing, seen = [], 0
    for path in code_files():
        public = [(name_of(path), tree(path))]
        public += [
            (f"{name_of(path)}:{node.lineno} {node.name}", node)
            for node in ast.walk(tree(path))
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        ]
        public += [(place, node) for place, node, is_public in functions(path) if is_public]
        seen += len(public)
        missing += [place for place, node in public if not ast.get_docstring(node)]
    assert seen >= 200, f"only {seen} public things found"
    assert not missing, f"no docstring: {missing}"


def test_nothing_is_left_unfinished():
    places = [
        f"{name_of(path)}:{number}"
        for path in (*code_files(), *files_of_tests(), *(ROOT / "conf").rglob("*.yaml"), ROOT / "Makefile")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert not places, f"finish it or open an issue: {places}"


def test_tests_keep_up_with_code():
    code, tests = sum(map(statement_lines, code_files())), sum(map(statement_lines, files_of_tests()))
    assert tests >= code, (
        f"{tests} lines of tests for {code} lines of code: {code - tests} lines of tests are missing"
    )


def test_test_files_have_unique_names():
    names = [path.name for path in files_of_tests() if path.name.startswith("test_")]
    assert len(names) >= 10
    assert sorted(set(names)) == sorted(names)
