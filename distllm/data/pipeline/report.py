"""The report of a preparation: counts and samples by source and rule, languages, fertility."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distllm.data.pipeline.documents import REMOVED_FILE, SAMPLES_PER_RULE
from distllm.data.pipeline.sources import Unit
from distllm.data.pipeline.work import Result
from distllm.data.records import Dropped

REPORT_FILE = "report.json"


@dataclass(slots=True)
class SourceReport:
    """The counts and samples of one source.

    Of ``read`` items ``kept`` became documents; ``dropped`` counts the others by rule, and ``samples``
    shows some of each. ``edited`` counts documents by the cleaning rule that changed them,
    ``replaced`` counts personal data by kind. ``found`` has samples of that data in the original form:
    they may be shown, but are never written to a file. ``languages`` counts documents, bytes, words and
    tokens by language; the two sides of a pair are counted separately if their languages are given.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    edited: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)
    found: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    languages: dict[str, Counter[str]] = field(default_factory=dict)
    samples: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def refuse(self, item: Dropped) -> None:
        """Count a refusal; the first of each rule are kept as samples."""
        self.dropped[item.rule] += 1
        self.show(item)

    def show(self, item: Dropped) -> None:
        """Keep ``item`` as a sample of its rule, unless there are enough."""
        shown = self.samples.setdefault(item.rule, [])
        if len(shown) < SAMPLES_PER_RULE:
            shown.append(asdict(item))


def gather(
    units: Sequence[Unit],
    passed_over: Mapping[str, Sequence[Dropped]],
    stages: Sequence[Sequence[Result]],
    encoded: Sequence[Result] = (),
) -> dict[str, SourceReport]:
    """Add up the facts of the document stages, the first of which read and the last of which kept."""
    reports: dict[str, SourceReport] = {}
    for name, items in passed_over.items():
        reports[name] = SourceReport(read=len(items))
        for item in items:
            reports[name].refuse(item)
    for unit, first, last in zip(units, stages[0], stages[-1], strict=True):
        reports[unit.source.name].read += first.facts["read"]
        reports[unit.source.name].kept += last.facts["kept"]
    for stage in stages:
        for unit, result in zip(units, stage, strict=True):
            report = reports[unit.source.name]
            report.edited.update(result.facts.get("edited", {}))
            report.replaced.update(result.facts.get("replaced", {}))
            for kind, shown in result.facts.get("found", {}).items():
                report.found[kind] = [*report.found.get(kind, ()), *shown][:SAMPLES_PER_RULE]
            for item in removed_items(result):
                report.refuse(item)
            for cut in result.facts.get("samples", ()):
                report.show(Dropped(**cut))
    for unit, result in zip(units, encoded, strict=False):
        languages = reports[unit.source.name].languages
        for split in (result.facts.get("sides") or result.facts["splits"]).values():
            for language, counts in split.items():
                languages.setdefault(language, Counter()).update(counts)
    return reports


def removed_items(result: Result) -> Iterator[Dropped]:
    """Yield what one stage dropped of one unit."""
    with (result.directory / REMOVED_FILE).open(encoding="utf-8") as log:
        for line in log:
            yield Dropped(**json.loads(line))


def write_removed(
    path: Path,
    passed_over: Mapping[str, Sequence[Dropped]],
    units: Sequence[Unit],
    stages: Sequence[Sequence[Result]],
    scrub: Callable[[str], str],
) -> None:
    """Write one line for everything that was dropped: by source, then stage, then in canonical order.

    ``scrub`` replaces personal data, which a reason may quote.
    """
    with path.open("w", encoding="utf-8") as log:
        for name in sorted(passed_over):
            log.writelines(_line(name, item, scrub) for item in passed_over[name])
            for stage in stages:
                for unit, result in zip(units, stage, strict=True):
                    if unit.source.name == name:
                        log.writelines(_line(name, item, scrub) for item in removed_items(result))


def _line(source: str, item: Dropped, scrub: Callable[[str], str]) -> str:
    line = {"source": source, "id": item.id, "rule": item.rule, "reason": scrub(item.reason)}
    return json.dumps(line) + "\n"


def as_json(reports: Mapping[str, SourceReport], scrub: Callable[[str], str]) -> dict[str, Any]:
    """Return the reports as JSON values, counts sorted by name.

    ``scrub`` replaces personal data: samples are taken before the text is changed.
    """
    return {
        name: {
            "read": report.read,
            "kept": report.kept,
            "dropped": dict(sorted(report.dropped.items())),
            "edited": dict(sorted(report.edited.items())),
            "replaced": dict(sorted(report.replaced.items())),
            "languages": {language: dict(counts) for language, counts in sorted(report.languages.items())},
            "samples": {
                rule: [one | {key: scrub(one[key]) for key in ("reason", "sample")} for one in shown]
                for rule, shown in sorted(report.samples.items())
            },
        }
        for name, report in sorted(reports.items())
    }


def from_json(content: Mapping[str, Mapping[str, Any]]) -> dict[str, SourceReport]:
    """Return the reports that ``as_json`` wrote."""
    return {
        name: SourceReport(
            read=entry["read"],
            kept=entry["kept"],
            dropped=Counter(entry["dropped"]),
            edited=Counter(entry["edited"]),
            replaced=Counter(entry["replaced"]),
            languages={language: Counter(counts) for language, counts in entry["languages"].items()},
            samples=entry["samples"],
        )
        for name, entry in content.items()
    }


def describe(reports: Mapping[str, SourceReport]) -> list[str]:
    """Return lines for people: per source what was kept, dropped (with a sample), edited, replaced."""
    lines = []
    for name, report in sorted(reports.items()):
        lines.append(f"source {name}: {report.kept} documents kept of {report.read} read")
        for rule, count in sorted(report.dropped.items(), key=lambda entry: (-entry[1], entry[0])):
            lines.append(f"  dropped by {rule}: {count} ({100 * count / max(1, report.read):.1f} %)")
            first = report.samples[rule][0]
            lines.append(f"    such as {first['id']}: {first['reason']}")
        for rule, count in sorted(report.edited.items()):
            lines.append(f"  edited by {rule}: {count}")
            if (cut := report.samples.get(rule)) and rule not in report.dropped:
                lines.append(f"    such as {cut[0]['id']}: {cut[0]['reason']}")
        for kind, count in sorted(report.replaced.items()):
            lines.append(f"  replaced {kind}: {count}")
            lines += [f"    such as {one['id']}: {one['text']}" for one in report.found.get(kind, ())]
        for language, counts in sorted(report.languages.items()):
            lines.append(f"  language {language or 'unknown'}: {_fertility(counts)}")
    return lines


def _fertility(counts: Mapping[str, int]) -> str:
    words, tokens = max(1, counts["words"]), max(1, counts["tokens"])
    return (
        f"{counts['documents']} documents, {counts['tokens']} tokens, "
        f"{counts['tokens'] / words:.2f} tokens a word, {counts['bytes'] / tokens:.2f} bytes a token"
    )
