"""Judged queries to the documentation of the standard library: what is asked, and which modules answer.

The corpus is made of the docstrings of this Python, so it needs no download; queries are in other words
than the documents where people would use others.
"""

import json
import sysconfig
from pathlib import Path

import numpy as np

from distllm.data.read.pydocs import find_modules, read_module
from distllm.data.records import Document
from distllm.evaluate.retrieval import score_rankings

QUERIES = Path(__file__).parent / "bench" / "search_queries.tsv"
PLACES = 10
# Applications, tables and copies in Python of what another module documents.
LEFT_OUT = (
    "idlelib", "lib2to3", "encodings.", "distutils", "tkinter", "turtledemo", "turtle", "ensurepip",
    "pydoc_data", "_pyio", "_pydecimal", "__phello__", "msilib", "ctypes.macholib",
)  # fmt: skip


def documents():
    """Return (name, text) of each module of the standard library that has docstrings."""
    modules = find_modules([Path(sysconfig.get_path("stdlib"))])
    read = (read_module(name, path) for name, path in modules.items() if not name.startswith(LEFT_OUT))
    return [(one.id.removeprefix("module:"), one.text) for one in read if isinstance(one, Document)]


def write_corpus(path):
    """Write the documents as JSON lines with ``id`` and ``text``."""
    lines = (json.dumps({"id": name, "text": text}) for name, text in documents())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def judged(names):
    """Return (query, modules that answer it) for each query that one of ``names`` answers."""
    rows = (line.split("\t") for line in QUERIES.read_text(encoding="utf-8").splitlines())
    known = ((query, set(right.split()) & set(names)) for query, right in rows)
    return [(query, right) for query, right in known if right]


def score(ranked, right):
    """Return nDCG, MRR and recall at 10 of rankings of names, given the right names of each."""
    names = {
        name: place for place, name in enumerate(sorted({one for row in (*ranked, *right) for one in row}))
    }
    nothing = len(names)
    found = [[names[one] for one in row[:PLACES]] for row in ranked]
    padded = np.array([row + [nothing] * (PLACES - len(row)) for row in found])
    return score_rankings(padded, [{names[one] for one in row} for row in right], PLACES)
