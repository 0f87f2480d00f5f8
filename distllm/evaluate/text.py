"""Measures of generated text against references: BLEU, chrF and ROUGE, by the libraries that define them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distllm.extras import require


@dataclass(frozen=True, slots=True)
class TranslationScores:
    """Corpus BLEU and chrF in percent, with the signatures under which others can compare them."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


def score_translations(hypotheses: Sequence[str], references: Sequence[str]) -> TranslationScores:
    """Score a system's output, one line for each reference, as sacrebleu does (Post 2018; Popović 2015).

    Raises:
        MissingDependency: sacrebleu is not installed.
        ValueError: there are not as many hypotheses as references.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references")
    metrics = require("sacrebleu.metrics", "BLEU and chrF", extra="eval")
    bleu, chrf = metrics.BLEU(), metrics.CHRF()
    scores = [metric.corpus_score(list(hypotheses), [list(references)]).score for metric in (bleu, chrf)]
    return TranslationScores(scores[0], scores[1], str(bleu.get_signature()), str(chrf.get_signature()))


def score_summaries(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L in percent, with Porter's stems (Lin 2004).

    Raises:
        MissingDependency: rouge-score is not installed.
        ValueError: there are not as many hypotheses as references.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references")
    names = ("rouge1", "rouge2", "rougeL")
    scorer = require("rouge_score.rouge_scorer", "ROUGE", extra="eval").RougeScorer(names, use_stemmer=True)
    each = [scorer.score(gold, told) for gold, told in zip(references, hypotheses, strict=True)]
    return {name: 100 * float(np.mean([scores[name].fmeasure for scores in each])) for name in names}
