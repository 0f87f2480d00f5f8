"""Recall, precision and speed of the privacy scrub on generated documents.

python tests/bench/privacy_quality.py [DOCUMENTS] [SEED]
"""

import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from privacy_corpus import Sample, samples

from distllm.config.schema_privacy import PrivacyConfig, PrivacyKind
from distllm.data.privacy import Scrubber

SLACK = 2  # characters that a finding may hold beyond the truth


@dataclass
class Quality:
    """What was there, what was found, and what of it was right, by kind."""

    there: Counter[str]
    found: Counter[str]
    right: Counter[str]
    wrong: list[str]

    def recall(self, kind: str) -> float:
        return self.right[kind] / max(1, self.there[kind])

    def precision(self, kind: str) -> float:
        return self.right[kind] / max(1, self.found[kind])


def measure(documents: list[Sample]) -> Quality:
    scrubber = Scrubber(PrivacyConfig(scrub=get_args(PrivacyKind)))
    quality = Quality(Counter(), Counter(), Counter(), [])
    for sample in documents:
        found = [(each.kind, each.start, each.stop) for each in scrubber.find(sample.text)]
        for kind, start, stop in sample.truth:
            hit = next(
                (
                    f
                    for f in found
                    if f[0] == kind and f[1] <= start and f[2] >= stop and f[2] - f[1] <= stop - start + SLACK
                ),
                None,
            )
            for name in (kind, "all"):
                quality.there[name] += 1
                quality.right[name] += hit is not None
            if hit is None:
                quality.wrong.append(f"missed {kind}: {sample.text[max(0, start - 20) : stop + 10]!r}")
            else:
                found.remove(hit)
                quality.found.update((kind, "all"))
        for kind, start, stop in found:
            quality.found.update((kind, "all"))
            quality.wrong.append(f"false {kind}: {sample.text[max(0, start - 30) : stop + 10]!r}")
    return quality


def main() -> None:
    count, seed = (int(word) for word in (*sys.argv[1:], "2400", "0")[:2])
    documents = samples(count, seed)
    started = time.process_time()
    quality = measure(documents)
    seconds = time.process_time() - started
    print(f"{count} documents, {sum(len(s.text.encode()) for s in documents) / 1e6 / seconds:.1f} MB/cpu-s")
    for kind in (*get_args(PrivacyKind), "all"):
        print(
            f"{kind:12} there {quality.there[kind]:5} found {quality.found[kind]:5} "
            f"recall {quality.recall(kind):.4f} precision {quality.precision(kind):.4f}"
        )
    print("\n".join(quality.wrong[:40]))


if __name__ == "__main__":
    main()
