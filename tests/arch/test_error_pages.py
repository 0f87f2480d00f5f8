"""No error without a page: every call that makes one is a message with a name, a cause and a remedy."""

import ast
import json
import re

from arch.sources import ROOT, code_files, name_of, tree

from distllm import errors
from distllm.messages import all_messages

KINDS = {
    name
    for name, one in vars(errors).items()
    if isinstance(one, type) and issubclass(one, errors.DistllmError)
}
HAND_ON = {"distllm/config/problems.py"}
"""What only hands on the words of others, which have a page."""
EXAMPLES, GONE = 0.92, 0.1
MESSAGES = all_messages()


def made_in(path):
    """Lines of the calls that make an error; none of those that gather problems."""
    return {
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in KINDS - {"ConfigProblems"}
    }


def test_every_error_that_code_makes_has_a_page():
    pages = {(re.sub("^distllm/(kernels|launch|slurm)/", r"\1/", one.path), one.lines[0]) for one in MESSAGES}
    made = {(name_of(path), line) for path in code_files() for line in made_in(path)}
    assert len(made) > 200
    bare = {place for place in made - pages if place[0] not in HAND_ON}
    assert not bare, f"give the cause words of its own, or hand the error on with recast: {sorted(bare)}"


def test_every_page_has_a_cause_and_a_remedy_and_a_name_that_says_something():
    bare = [f"{one.path}:{one.lines[0]}" for one in MESSAGES if not (one.cause and one.remedy)]
    assert not bare, f"no cause or no remedy: {bare}"
    odd = [one.name for one in MESSAGES if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", one.name)]
    assert not odd


def test_most_messages_have_an_example_and_few_examples_are_of_messages_that_are_gone():
    examples = json.loads((ROOT / "docs" / "errors.json").read_text(encoding="utf-8"))
    names = {one.name for one in MESSAGES}
    gone = examples.keys() - names
    assert len(gone) <= GONE * len(examples), f"make error-examples leaves them out: {sorted(gone)}"
    assert len(examples.keys() & names) > EXAMPLES * len(names)
