"""The stages that look at one document at a time: read, clean, and refine.

Refining comes after the global decision on duplicates: it removes them, decontaminates, and replaces
personal data. Each stage reads the documents of one unit and writes those that it keeps, a log of
what it dropped, and counts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from distllm.config.schema import Config
from distllm.data.clean import Cleaner
from distllm.data.dedup import Decontaminator, Removals
from distllm.data.pipeline.sources import Unit
from distllm.data.pipeline.spool import SpoolWriter, read_documents
from distllm.data.pipeline.work import Result, Task, Tick, address
from distllm.data.privacy import Scrubber
from distllm.data.read import read_part
from distllm.data.records import Document, Dropped
from distllm.data.split import split_hash, split_key

REMOVED_FILE = "removed.jsonl"
SAMPLES_PER_RULE = 3
_AROUND = 20
_SECRETS = ("api_key", "private_key")
_VERSIONS = {"read": 3, "clean": 3, "refine": 7}


class Output:
    """Writes what a stage keeps and drops of one unit.

    Args:
        directory: gets the documents and the log.
        fields: the fields of every document.
        tick: called with the number of bytes of text seen so far.
    """

    def __init__(self, directory: Path, fields: tuple[str, ...], tick: Tick) -> None:
        self._tick = tick
        self._spool = SpoolWriter(directory, fields)
        self._log = (directory / REMOVED_FILE).open("w", encoding="utf-8")
        self._seen_bytes = 0
        self.read = self.kept = self.text_bytes = 0
        self.dropped: Counter[str] = Counter()

    def saw(self, size: int) -> None:
        """Note that an item of ``size`` bytes came in."""
        self.read += 1
        self._seen_bytes += size
        self._tick(self._seen_bytes)

    def put(self, item: Document | Dropped) -> None:
        """Keep a document, or count and log a refusal."""
        if isinstance(item, Document):
            self.kept += 1
            self.text_bytes += text_bytes(item)
            self._spool.add(item)
        else:
            self.dropped[item.rule] += 1
            self._log.write(json.dumps(asdict(item)) + "\n")

    def plant(self, document: Document) -> None:
        """Write a document that is not from a source."""
        self.text_bytes += text_bytes(document)
        self._spool.add(document)

    def facts(self, **more: Any) -> dict[str, Any]:
        """Return the counts as JSON values, with ``more``."""
        counts = {"read": self.read, "kept": self.kept, "text_bytes": self.text_bytes}
        return {**counts, "dropped": dict(self.dropped), **more}

    def __enter__(self) -> Output:
        self._spool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spool.__exit__(kind, error, trace)
        self._log.close()


def text_bytes(document: Document) -> int:
    """Return the UTF-8 bytes of all fields."""
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in document.fields.values())


def read_task(unit: Unit) -> Task:
    """Extract the documents of the unit's parts."""

    def perform(directory: Path, tick: Tick) -> Mapping[str, Any]:
        with Output(directory, unit.source.fields, lambda _: None) as output:
            done = 0
            for part in unit.parts:
                in_part = 0
                for item in read_part(part, unit.source.read):
                    in_part += text_bytes(item) if isinstance(item, Document) else 0
                    output.saw(0)
                    output.put(item)
                    tick(done + min(in_part, part.size))
                done += part.size
            return output.facts()

    prints = [[list(part.paths), part.fingerprint] for part in unit.parts]
    return Task(address("read", _VERSIONS["read"], unit.source.reading(), prints), unit.size, perform)


def clean_task(unit: Unit, read: Result, filters: Sequence[Sequence[str]] = ()) -> Task:
    """Apply the cleaning profile of the unit's source, whose own ``filters`` have these names and digests."""
    profile = unit.source.clean

    def perform(directory: Path, tick: Tick) -> Mapping[str, Any]:
        cleaner, edited, languages = Cleaner(profile), Counter[str](), Counter[str]()
        with Output(directory, unit.source.fields, tick) as output:
            for document in read_documents(read.directory):
                output.saw(text_bytes(document))
                item, rules = cleaner(document)
                output.put(item)
                if isinstance(item, Document):
                    edited.update(rules)
                    languages[item.language] += 1
            return output.facts(edited=dict(edited), languages=dict(languages))

    marks = [list(map(list, filters))] if filters else []
    key = address("clean", _VERSIONS["clean"], asdict(profile), read.digest, *marks)
    return Task(key, _size(read), perform)


class _Cuts:
    """Counts documents that lost a part, by the rule that cut it, with the first few as samples."""

    def __init__(self) -> None:
        self._edited: Counter[str] = Counter()
        self._samples: list[Dropped] = []

    def note(self, cut: Dropped | None) -> None:
        """Count ``cut``, unless nothing was."""
        if cut is not None:
            self._edited[cut.rule] += 1
            if self._edited[cut.rule] <= SAMPLES_PER_RULE:
                self._samples.append(cut)

    def facts(self) -> dict[str, Any]:
        """Return the counts and samples as JSON values."""
        return {"edited": dict(self._edited), "samples": [asdict(sample) for sample in self._samples]}


class _Replacements:
    """Counts replaced personal data by kind, with the first few of each in their original form."""

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber
        self._counts: Counter[str] = Counter()
        self._shown: dict[str, list[dict[str, str]]] = {}

    def __call__(self, document: Document) -> Document:
        """Return the document with placeholders."""
        fields = {}
        for name, text in document.fields.items():
            fields[name], found = self._scrubber.scrub(text)
            if any(len(self._shown.get(kind, ())) < SAMPLES_PER_RULE for kind in found):
                self._show(document.id, text)
            self._counts.update(found)
        return Document(document.id, fields, document.language)

    def _show(self, id_: str, text: str) -> None:
        found = self._scrubber.find(text)
        edges = [0, *(edge for each in found for edge in (each.start, each.stop)), len(text)]
        for each, (left, right) in zip(found, zip(edges[::2], edges[3::2], strict=False), strict=False):
            shown = self._shown.setdefault(each.kind, [])
            if len(shown) < SAMPLES_PER_RULE:
                what = text[each.start : each.stop]
                what = f"{what[: _AROUND // 2]}..." if each.kind in _SECRETS else what
                before = text[max(left, each.start - _AROUND) : each.start]
                after = text[each.stop : min(right, each.stop + _AROUND)]
                shown.append({"id": id_, "text": " ".join(f"{before}{what}{after}".split())})

    def facts(self) -> dict[str, Any]:
        """Return the counts and samples as JSON values."""
        return {"replaced": dict(self._counts), "found": self._shown}


def refine_task(
    unit: Unit,
    clean: Result,
    removals: Removals,
    config: Config,
    decontaminator: Decontaminator,
    planted: Mapping[int, Sequence[Document]],
) -> Task:
    """Remove duplicates, decontaminate, replace personal data; note the range of the split hashes.

    A ``planted`` document follows the document of its row, even if that one is dropped.
    """
    scrubber = Scrubber(config.privacy)

    def settle(row: int, document: Document, replace: _Replacements, cuts: _Cuts) -> Document | Dropped:
        item = removals.apply(row, document)
        if isinstance(item, Document):
            cuts.note(removals.cut(row, document))
            item = decontaminator(item)
        return replace(item) if isinstance(item, Document) else item

    def perform(directory: Path, tick: Tick) -> Mapping[str, Any]:
        replace, cuts = _Replacements(scrubber), _Cuts()
        hashes: list[int] = []
        with Output(directory, unit.source.fields, tick) as output:
            for row, document in enumerate(read_documents(clean.directory)):
                output.saw(text_bytes(document))
                item = settle(row, document, replace, cuts)
                output.put(item)
                if isinstance(item, Document):
                    hashes = _extremes([*hashes, split_hash(config.seed, split_key(item))])
                for canary in planted.get(row, ()):
                    output.plant(canary)
            return output.facts(split_hashes=hashes, **replace.facts(), **cuts.facts())

    rules = {name: value for name, value in asdict(config.privacy).items() if name != "canaries"}
    copies = [[row, [asdict(canary) for canary in held]] for row, held in sorted(planted.items())]
    key = address(
        "refine", _VERSIONS["refine"], clean.digest, removals.digest, decontaminator.digest,
        rules, config.seed, *([copies] if copies else []),
    )  # fmt: skip
    return Task(key, _size(clean), perform)


def _size(result: Result) -> int:
    return max(1, int(result.facts["text_bytes"]))


def _extremes(values: Iterable[int]) -> list[int]:
    found = list(values)
    return [min(found), max(found)]
