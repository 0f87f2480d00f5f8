"""Keys of deduplication and decontamination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distllm.config.options import option


@dataclass(frozen=True)
class DedupConfig:
    """Which repetitions are removed, within and across sources."""

    documents: bool = option(True, "drop documents whose text is equal to another's", on_resume="identity")
    pieces: Literal["none", "lines", "paragraphs"] = option(
        "none", "remove those pieces of a text that another document has had", on_resume="identity"
    )
    min_piece_chars: int = option(
        40, "shorter lines and paragraphs may repeat", on_resume="identity", minimum=1
    )
    near: bool = option(False, "drop documents nearly equal to another (MinHash)", on_resume="identity")
    ngram: int = option(5, "words of an n-gram whose sets are compared", on_resume="identity", minimum=1)
    bands: int = option(14, "bands of a MinHash signature", on_resume="identity", minimum=1)
    rows: int = option(8, "permutations in a band", on_resume="identity", minimum=1)
    near_similarity: float = option(
        0.7,
        "least estimated Jaccard similarity to the document that stays",
        on_resume="identity",
        minimum=0.0,
        maximum=1.0,
    )
    minhash_seed: int = option(1, "seed of the permutations", on_resume="identity", minimum=0)
    against: tuple[str, ...] = option(
        (), "dataset directories whose documents count as seen", on_resume="identity"
    )
    decontaminate: tuple[str, ...] = option(
        (),
        "evaluation sets (text, JSONL, datasets): documents that overlap go",
        on_resume="identity",
    )
    decontaminate_ngram: int = option(
        13,
        "words in a row that a document may not share with those",
        on_resume="identity",
        minimum=2,
    )

    @property
    def permutations(self) -> int:
        """Values of a MinHash signature."""
        return self.bands * self.rows
