"""Temporary."""

from __future__ import annotations

import json
from collections.abc import Sequence

import xxhash

from distllm.data.pipeline.spool import read_documents
from distllm.data.pipeline.work import Result, Task, WorkDirectory, address
from distllm.data.records import Dropped


class Removals:
    def __init__(self, rows):
        self._rows = rows
        self.digest = address(sorted(rows.items()))

    def apply(self, row, document):
        if row in self._rows:
            return Dropped.of(document, "duplicate", self._rows[row])
        return document


class Decontaminator:
    digest = ""

    def __call__(self, document):
        return document


def decontaminator_of(config):
    return Decontaminator()


def decide_duplicates(work: WorkDirectory, config, units, clean: Sequence[Result]) -> list[Removals]:
    def sign(result):
        def perform(directory, tick):
            digests = [xxhash.xxh3_128_hexdigest(d.text.encode()) for d in read_documents(result.directory)]
            (directory / "digests.json").write_text(json.dumps(digests))
            return {}
        return Task(address("sign", result.digest), max(1, result.facts["text_bytes"]), perform)

    signed = work.run("sign", [sign(result) for result in clean])

    def perform(directory, tick):
        seen, out = {}, []
        for number, result in enumerate(signed):
            rows = {}
            for row, digest in enumerate(json.loads((result.directory / "digests.json").read_text())):
                if digest in seen:
                    rows[row] = f"same text as an earlier document ({digest})"
                seen.setdefault(digest, 1)
            out.append(rows)
        (directory / "rows.json").write_text(json.dumps(out))
        return {}

    (decided,) = work.run("duplicates", [Task(address("duplicates", [r.digest for r in signed]), 1, perform)])
    rows = json.loads((decided.directory / "rows.json").read_text())
    return [Removals({int(k): v for k, v in each.items()}) for each in rows]
