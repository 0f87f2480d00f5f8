"""Canaries: texts with random digits, planted to measure what a model remembers of its training data.

The seed determines a list of possible canaries; those that are planted are drawn from it, each as
often as configured. A model that has not learnt them ranks them anywhere in the list; how much higher it
ranks them is their exposure ("The Secret Sharer", arXiv:1802.08232, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distllm.config.schema_privacy import CanaryConfig
from distllm.data.records import Document
from distllm.data.split import CANARY
from distllm.data.tokenizer import Tokenizer
from distllm.errors import DataError
from distllm.fsio import read_json
from distllm.seeds import derive_seed

CANARIES_FILE = "canaries.json"
_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Canaries:
    """Canaries of a dataset.

    Attributes:
        texts: every canary that could have been planted.
        planted: how often each was planted, by its number in ``texts``; 0 for one that is only measured.
    """

    texts: tuple[str, ...]
    planted: Mapping[int, int]

    @classmethod
    def draw(cls, config: CanaryConfig, seed: int) -> Canaries:
        """Return the canaries of a configuration."""
        texts: dict[str, None] = {}
        number = 0
        while len(texts) < config.space:
            digits = derive_seed(seed, "canary", number) % 10**_DIGITS
            texts[config.text.replace("{}", f"{digits:0{_DIGITS}d}")] = None
            number += 1
        # The digits are random, so the first of the list are a random choice from it.
        return cls(tuple(texts), dict(enumerate(config.repeats)))

    @classmethod
    def load(cls, directory: Path) -> Canaries | None:
        """Return the canaries of a prepared dataset, or None if it has none."""
        if not (directory / CANARIES_FILE).is_file():
            return None
        known = read_json(directory / CANARIES_FILE)
        asked = CanaryConfig(
            tuple(item["copies"] for item in known["planted"]), known["text"], known["space"]
        )
        return cls.draw(asked, known["seed"])

    def places(self, seed: int, rows: Sequence[int]) -> list[dict[int, list[Document]]]:
        """Return where to plant the copies in units of so many ``rows``: per unit, the copies after a row."""
        placed: list[dict[int, list[Document]]] = [{} for _ in rows]
        total = sum(rows)
        for number, copies in self.planted.items() if total else ():
            for copy in range(copies):
                row, unit = derive_seed(seed, "canary", number, "place", copy) % total, 0
                while row >= rows[unit]:
                    row, unit = row - rows[unit], unit + 1
                document = Document.from_text(f"{CANARY}{number}.{copy}", self.texts[number])
                placed[unit].setdefault(row, []).append(document)
        return placed


def combine_canaries(known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the common description of the canaries of all datasets of ``known``, at least one.

    Raises:
        DataError: two of them drew from different lists, which one description cannot say.
    """
    first, found = next(iter(known.items()))
    planted: dict[str, dict[str, Any]] = {}
    for directory, more in known.items():
        if any(more[key] != found[key] for key in ("seed", "text", "space")):
            raise DataError(
                f"{first} and {directory} hold canaries of different lists",
                where=f"{directory}/{CANARIES_FILE}",
                remedy="prepare both with the same seed and privacy.canaries, or one of them without",
            )
        for entry in more["planted"]:
            total = planted.setdefault(entry["text"], {**entry, "copies": 0, "documents": []})
            total["copies"] += entry["copies"]
            total["documents"] += entry["documents"]
    return {**found, "planted": list(planted.values())}


def describe_canaries(config: CanaryConfig, seed: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the description of a dataset's canaries: each with its text, ids and copies."""
    drawn = Canaries.draw(config, seed)
    return {
        "seed": seed,
        "text": config.text,
        "space": config.space,
        "planted": [
            {
                "text": drawn.texts[number],
                "ids": tokenizer.encode(drawn.texts[number]),
                "copies": copies,
                "documents": [f"{CANARY}{number}.{copy}" for copy in range(copies)],
            }
            for number, copies in drawn.planted.items()
        ],
    }
