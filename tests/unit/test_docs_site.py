"""The documentation site builds without a warning, and its reference holds every key, command and error."""

import importlib.util
import inspect
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from distllm import errors
from distllm.cli import COMMANDS
from distllm.config.keys import leaves
from distllm.config.schema import Config
from distllm.messages import all_messages

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("docs_reference", CHECKOUT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(reference):
    return reference.pages()


def test_every_key_has_a_row_with_type_default_and_meaning(pages):
    text = pages["reference/configuration.md"]
    rows = defaultdict(list)
    for key, row in re.findall(r"^\| `([^`]+)` \| (.*) \|$", text, re.MULTILINE):
        rows[key].append(row)
    for leaf in leaves(Config):
        (found,) = rows[leaf.path]
        cells = re.split(r"(?<!\\)\|", found)
        assert len(cells) == 4, found
        assert all(cell.strip() for cell in cells)


def test_every_command_and_its_options_are_listed(pages):
    text = pages["reference/commands.md"]
    for name in COMMANDS:
        assert f"## distllm {name}\n" in text
    assert "| `png=` | `False` |" in text
    assert "- `distllm search build`: corpus=PATH" in text
    assert "| `passage_tokens=` | `128` |" in text


def test_every_room_has_a_page_of_what_is_public_in_it(pages):
    rooms = {path.parent.name for path in (CHECKOUT / "distllm").glob("*/__init__.py")}
    for room in rooms - {"launch", "conf", "slurm"}:
        assert f"# {room}\n" in pages[f"reference/python/{room}.md"]
        assert f"({room}.md)" in pages["reference/python/index.md"]
    search = pages["reference/python/search.md"]
    assert "**`fuse(rankings: Iterable[list[int]]) -> list[tuple[int, float]]`**" in search
    assert "**`SearchIndex.hits(self, query: str, top: int" in search
    assert "*Raises*\n\n- ConfigError: the query is empty." in search
    assert "_require_same" not in search


@pytest.mark.slow
def test_every_error_has_a_page_and_every_class_lists_its_own(pages):
    index = pages["reference/errors/index.md"]
    for message in all_messages():
        page = pages[f"reference/errors/{message.name}.md"]
        assert f"**{message.kind}**, exit code {message.exit_code}, made in `{message.path}`." in page
        assert f"]({message.name}.md) |" in index
        assert f"]({message.name}.md) |" in pages[f"reference/errors/{message.kind}.md"]
    for name, one in vars(errors).items():
        if inspect.isclass(one) and issubclass(one, errors.DistllmError):
            assert f"Exit code {one.exit_code}." in pages[f"reference/errors/{name}.md"]
            assert f"({name}.md)" in index
    assert "```text\ndistllm: no run " in pages["reference/errors/no-run.md"]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    for page in (
        "index.html",
        "reference/configuration.html",
        "reference/errors/ConfigError.html",
        "reference/errors/no-run.html",
        "reference/python/search.html",
        "tutorials/first-run.html",
    ):
        text = (tmp_path / "site" / page).read_text()
        assert "fonts.googleapis" not in text
    assert (tmp_path / "site" / "dashboards.html").exists()


def test_docstrings_are_shown_with_lists_of_their_sections(reference):
    text = (
        "Do it.\n\nMore of <it>.\n\n"
        "Args:\n    a: one thing,\n        in two lines.\n    b: two\n\nRaises:\n    E: why\n"
    )
    first = ["Do it.", "", "More of &lt;it>.", ""]
    arguments = ["*Args*", "", "- a: one thing,", "  in two lines.", "- b: two", ""]
    assert reference.shown(text) == [*first, *arguments, "*Raises*", "", "- E: why"]


def test_what_is_private_is_not_shown(reference, tmp_path):
    file = reference.PACKAGE / "units.py"
    lines = reference.module_entry(file)
    assert lines[0] == "## distllm.units"
    assert any(line.startswith("**`parse_count(text: str) -> int`**") for line in lines)
    assert not any("_parse" in line for line in lines)
    assert reference.module_entry(reference.PACKAGE / "commands" / "__init__.py") == []


def test_actions_have_their_options_listed(reference):
    from distllm.commands import checkpoint, report

    assert [one.__name__ for one in reference.options_of(checkpoint)] == [
        "ListOptions", "VerifyOptions", "ConvertOptions", "PruneOptions"
    ]  # fmt: skip
    assert [one.__name__ for one in reference.options_of(report)] == ["Options"]
