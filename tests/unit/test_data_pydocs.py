import itertools
import sys
from pathlib import Path

import pytest

from distllm.config.schema_read import ReadConfig
from distllm.data.read import find_parts, read_part
from distllm.data.read import pydocs as pydocs_module
from distllm.data.read.part import Part
from distllm.data.read.pydocs import environment_fingerprint, find_modules, read_module, read_pydocs
from distllm.data.records import Document, Dropped

SOURCE = '''
"""The module.

Second line."""
import does_not_exist
raise SystemExit("executed")

class A:
    """Class A."""

    async def method(self):
        """    Indented.

            More.
        End.
        """
        def inner():
            "Inner."

def silent(): ...

try:
    pass
except ValueError:
    if True:
        def guarded():
            """Guarded."""
'''


def test_a_module_becomes_its_docstrings_in_source_order(tmp_path):
    (tmp_path / "m.py").write_text(SOURCE)
    document = read_module("pkg.m", tmp_path / "m.py")
    assert document == Document.from_text(
        "module:pkg.m",
        "# pkg.m\n\nThe module.\n\nSecond line.\n\n"
        "## pkg.m.A\n\nClass A.\n\n"
        "## pkg.m.A.method\n\nIndented.\n\n    More.\nEnd.\n\n"
        "## pkg.m.A.method.inner\n\nInner.\n\n"
        "## pkg.m.guarded\n\nGuarded.",
    )


def test_a_module_without_its_own_docstring_keeps_the_heading(tmp_path):
    (tmp_path / "m.py").write_text('def f():\n    """F."""\n')
    assert read_module("m", tmp_path / "m.py") == Document.from_text("module:m", "# m\n\n## m.f\n\nF.")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"print 'python 2'", "not_python"),
        (b'"""\xff"""', "not_python"),
        (b"\0", "not_python"),
        (b"x = " + b"-" * 100_000 + b"1", "not_python"),
        (b"x = 1", "no_docstring"),
        (b"", "no_docstring"),
        (None, "unreadable"),
    ],
)
def test_a_file_without_usable_docstrings_is_dropped(tmp_path, content, rule):
    path = tmp_path / "m.py"
    if content is not None:
        path.write_bytes(content)
    item = read_module("m", path)
    assert isinstance(item, Dropped)
    assert (item.id, item.rule) == ("module:m", rule)


def test_a_declared_encoding_is_respected(tmp_path):
    (tmp_path / "m.py").write_bytes('# coding: latin-1\n"""caf\xe9"""'.encode("latin-1"))
    assert "café" in read_module("m", tmp_path / "m.py").text


def test_modules_are_found_by_the_stated_rules(tmp_path):
    first, second = tmp_path / "lib", tmp_path / "lib" / "site-packages"
    wanted = ["a.py", "pkg/__init__.py", "pkg/b.py", "pkg/testing/c.py", "latest.py"]
    unwanted = [
        "pkg/tests/d.py", "test/e.py", "pkg/test_f.py", "pkg/g_test.py", "conftest.py",
        "pkg/_vendor/h.py", "pkg-1.0.dist-info/i.py", "bin-x.py", "__init__.py", "j.txt",
    ]  # fmt: skip
    for name in wanted + unwanted:
        (first / name).parent.mkdir(parents=True, exist_ok=True)
        (first / name).write_text("")
    for name in ("a.py", "k.py"):
        second.mkdir(exist_ok=True)
        (second / name).write_text("")
    (first / "loop").symlink_to(first)
    found = find_modules([first, second, first])
    assert found == {
        "a": first / "a.py",
        "pkg": first / "pkg" / "__init__.py",
        "pkg.b": first / "pkg" / "b.py",
        "pkg.testing.c": first / "pkg" / "testing" / "c.py",
        "latest": first / "latest.py",
        "k": second / "k.py",
    }


PART = Part("pydocs", ("",), "", 1)


def pydocs():
    pydocs_module._catalogue.cache_clear()
    return read_pydocs(Path(), PART, ReadConfig())


@pytest.mark.slow
def test_the_source_is_a_deterministic_spread_and_imports_nothing():
    before = set(sys.modules)
    head = [item.id for item in itertools.islice(pydocs(), 25)]
    new = {name for name in set(sys.modules) - before if not name.startswith("_sysconfigdata")}
    assert new <= {"pydoc_data", "pydoc_data.topics"}
    assert head == [item.id for item in itertools.islice(pydocs(), 25)]
    assert len({id_.removeprefix("module:")[0] for id_ in head}) > 6


def test_parts_are_ranges_of_the_documents_with_as_many_bytes_as_there_are_to_read(monkeypatch, tmp_path):
    modules = {}
    for number in range(20):
        modules[f"m{number}"] = tmp_path / f"m{number}.py"
        modules[f"m{number}"].write_text(f'"""Module {number}."""' + "#" * 100 * number)
    monkeypatch.setattr("distllm.data.read.pydocs.find_modules", lambda roots: modules)
    monkeypatch.setattr("distllm.data.read.pydocs._help_topics", lambda: {"if": "A topic."})
    pydocs_module._catalogue.cache_clear()
    try:
        whole, _ = find_parts("pydocs", ReadConfig())
        parts, _ = find_parts("pydocs", ReadConfig(), part_bytes=4000)
        ids = [[item.id for part in cut for item in read_part(part, ReadConfig())] for cut in (whole, parts)]
    finally:
        pydocs_module._catalogue.cache_clear()
    assert len(whole) == 1 < len(parts)
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 21
    total = 8 + sum(path.stat().st_size for path in modules.values())
    assert sum(part.size for part in parts) == whole[0].size == total
    assert len({part.fingerprint for part in parts}) == len(parts)


@pytest.mark.slow
def test_with_a_bound_the_text_up_to_it_is_what_there_is_to_read():
    ((part,), _) = find_parts("pydocs", ReadConfig(max_bytes=12345))
    assert part.size == 12345


def test_the_fingerprint_tells_environments_apart(monkeypatch, tmp_path):
    (tmp_path / "m.py").write_text('"""M."""')
    monkeypatch.setattr("distllm.data.read.pydocs.find_modules", lambda roots: {"m": tmp_path / "m.py"})
    first = environment_fingerprint()
    assert environment_fingerprint() == first
    (tmp_path / "m.py").write_text('"""More."""')
    assert environment_fingerprint() != first


def test_help_topics_are_documents(monkeypatch):
    from pydoc_data.topics import topics

    monkeypatch.setattr("distllm.data.read.pydocs.find_modules", lambda roots: {})
    documents = {item.id: item.text for item in pydocs()}
    assert documents.keys() == {f"topic:{name}" for name in topics}
    assert documents["topic:assert"] == f"# assert\n\n{topics['assert']}"
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert list(pydocs()) == []
