"""Keys of cleaning: which rules apply, with which thresholds; null turns a rule off."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distllm.config.options import option


def _bound(help_text: str, *, minimum: float = 0.0, maximum: float | None = None) -> float | None:
    bound: float | None = option(None, help_text, on_resume="identity", minimum=minimum, maximum=maximum)
    return bound


def _share(help_text: str) -> float | None:
    return _bound(help_text, maximum=1.0)


def _switch(help_text: str, default: bool = False) -> bool:
    switch: bool = option(default, help_text, on_resume="identity")
    return switch


@dataclass(frozen=True)
class GopherConfig:
    """Quality rules of Gopher (Rae et al. 2021, appendix A.1.1)."""

    min_words: float | None = _bound("fewest words that are not symbols")
    max_words: float | None = _bound("most words that are not symbols")
    min_mean_word_length: float | None = _bound("least mean length of a word")
    max_mean_word_length: float | None = _bound("greatest mean length of a word")
    max_symbol_ratio: float | None = _bound("most hash signs, and most ellipses, a word")
    max_bullet_lines: float | None = _share("largest share of lines that begin with a bullet")
    max_ellipsis_lines: float | None = _share("largest share of lines that end with an ellipsis")
    min_alpha_words: float | None = _share("least share of words with a letter")
    min_stop_words: float | None = _bound("fewest different stop words of the language")


@dataclass(frozen=True)
class RepetitionConfig:
    """Repetition rules of Gopher (Rae et al. 2021, table A1), as shares of a document."""

    max_duplicate_lines: float | None = _share("largest share of lines that repeat")
    max_duplicate_line_chars: float | None = _share("largest share of characters in them")
    max_duplicate_paragraphs: float | None = _share("largest share of paragraphs that repeat")
    max_duplicate_paragraph_chars: float | None = _share("largest share of characters in them")
    max_top_ngram: tuple[float, ...] = option(
        (), "largest share of characters in the commonest 2-gram, 3-gram, ...", on_resume="identity"
    )
    max_duplicate_ngram: tuple[float, ...] = option(
        (), "largest share of characters in 5-grams, 6-grams, ... that repeat", on_resume="identity"
    )


@dataclass(frozen=True)
class C4Config:
    """Rules of C4 (Raffel et al. 2020, section 2.2): lines that are removed, documents that are dropped."""

    min_line_words: float | None = _bound("remove lines of fewer words")
    max_word_length: float | None = _bound("remove lines with a longer word")
    terminal_punctuation: bool = _switch("remove lines that do not end a sentence")
    boilerplate: bool = _switch("remove lines about javascript, cookies and terms of use, and citation marks")
    curly_bracket: bool = _switch("drop documents with a curly bracket")
    lorem_ipsum: bool = _switch("drop documents with the printer's nonsense text")
    min_sentences: float | None = _bound("fewest sentences")


@dataclass(frozen=True)
class FinewebConfig:
    """Rules that FineWeb adds (Penedo et al. 2024, section 3.6), as shares of lines or characters."""

    min_punctuated_lines: float | None = _share("least share of lines that end in punctuation")
    max_short_lines: float | None = _share("largest share of short lines")
    short_line_chars: int = option(30, "longest short line", on_resume="identity", minimum=1)
    max_duplicate_line_chars: float | None = _share("largest share of characters in lines that repeat")
    max_newlines_a_word: float | None = _bound("most line breaks a word")


@dataclass(frozen=True)
class CleanConfig:
    """Rules that edit or drop a document, in the order in which they are listed."""

    repair: bool = _switch("repair text that was decoded with the wrong encoding (ftfy)")
    normal_form: Literal["nfc", "nfkc"] = option(
        "nfc", "Unicode normal form; nfkc also merges variants of a character", on_resume="identity"
    )
    repeated_lines: bool = _switch("remove a line that stands right below an equal one")
    min_chars: int = option(
        64, "drop documents shorter than this after cleaning", on_resume="identity", minimum=0
    )
    languages: tuple[str, ...] = option(
        (), "keep only these languages (ISO 639-1); none keeps all", on_resume="identity"
    )
    language_threshold: float = option(
        0.65,
        "lowest accepted probability of the detected language",
        on_resume="identity",
        minimum=0.0,
        maximum=1.0,
    )
    detect_language: bool = _switch("detect the language of documents that declare none")
    gopher: GopherConfig = field(default_factory=GopherConfig)
    c4: C4Config = field(default_factory=C4Config)
    fineweb: FinewebConfig = field(default_factory=FinewebConfig)
    repetition: RepetitionConfig = field(default_factory=RepetitionConfig)
    filters: tuple[str, ...] = option(
        (), "filters of your own, by entry point name (group distllm.filters)", on_resume="identity"
    )
    lower_case: bool = _switch("lower-case the text: for classical baselines, harmful for language models")
    stop_words: Literal["keep", "remove"] = option(
        "keep",
        "remove stop words of the language: for classical baselines, harmful for language models",
        on_resume="identity",
    )
