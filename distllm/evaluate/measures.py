"""Scores of a trained model on held-out documents of its task: generated text, answers or rankings.

Shapes: B rows of a batch, T positions, C channels, W windows of one question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from distllm.data.batch import IGNORE_INDEX
from distllm.data.examples import ExampleSplit
from distllm.data.examples.answers import QUESTION, answers_of, context_of
from distllm.data.examples.dialogue import AnsweredQuestions
from distllm.data.examples.framing import Example, Framing, Record
from distllm.data.examples.pairs import SOURCE, TARGET, EncoderDecoderPairs
from distllm.data.examples.split import laid_out
from distllm.data.examples.windows import AnswerSpans
from distllm.data.tokenizer import Tokenizer
from distllm.evaluate.answers import score_answers
from distllm.evaluate.retrieval import BM25, score_rankings, search_exact
from distllm.evaluate.text import score_summaries, score_translations
from distllm.infer.beam import NO_SEARCH, Search
from distllm.infer.generate import generate_rows

Measures: TypeAlias = Mapping[str, float | str]
Show: TypeAlias = Callable[[str, str, str], None]
"""Called for each document with what was asked, what the model answered, and the reference."""
T = TypeVar("T")
_TOGETHER, _PLACES, _LONGEST_ANSWER = 32, 10, 30


def _show_nothing(asked: str, given: str, right: str) -> None:
    pass


def measure_task(
    task: str,
    model: nn.Module,
    split: ExampleSplit,
    tokenizer: Tokenizer,
    *,
    limit: int | None,
    show: Show = _show_nothing,
    search: Search = NO_SEARCH,
) -> Measures:
    """Score ``model``, in evaluation mode on the CPU, on the first ``limit`` documents of a split.

    - ``seq2seq`` and pairs of ``instruct``: BLEU, chrF and ROUGE; BLEU and chrF of copying the source.
    - questions: exact match and F1.
    - ``contrastive``: nDCG, MRR and recall among the passages of these documents; the same for BM25.
    - other tasks: nothing, their loss is the measure.

    ``show`` is called for each document; ``search`` is used by tasks that generate text.
    """
    documents = list(islice(split.documents(), limit))
    if task == "contrastive":
        return _ranked(model, [record for _, record in documents], tokenizer, show)
    if task == "extractive_qa":
        return _extracted(model, documents, tokenizer, show)
    if task == "instruct":
        asked = [(framing, record) for framing, record in documents if isinstance(framing, AnsweredQuestions)]
        if asked:
            return _answered(model, asked, tokenizer, show, search)
    pairs = [(framing, record) for framing, record in documents if TARGET in record]
    if pairs and task in ("seq2seq", "instruct"):
        return _translated(model, pairs, tokenizer, show, search)
    return {}


def _translated(
    model: nn.Module,
    documents: Sequence[tuple[Framing, Record]],
    tokenizer: Tokenizer,
    show: Show,
    search: Search,
) -> Measures:
    longest = 2 * max(record[TARGET].size for _, record in documents) + 8
    said = _said(model, documents, tokenizer, longest, search)
    right, sources = (
        [tokenizer.decode(record[field].tolist()) for _, record in documents] for field in (TARGET, SOURCE)
    )
    for triple in zip(sources, said, right, strict=True):
        show(*triple)
    scores, copied = score_translations(said, right), score_translations(sources, right)
    return {
        "bleu": scores.bleu,
        "chrf": scores.chrf,
        "bleu_of_copying": copied.bleu,
        "chrf_of_copying": copied.chrf,
        **score_summaries(said, right),
        "bleu_signature": scores.bleu_signature,
        "chrf_signature": scores.chrf_signature,
    }


def _said(
    model: nn.Module,
    documents: Sequence[tuple[Framing, Record]],
    tokenizer: Tokenizer,
    longest: int,
    search: Search,
) -> list[str]:
    """Return the likeliest text after each prompt or, with an encoder-decoder, for each source.

    A prompt or source that fills the model's context gets an empty text.
    """
    inner: Any = model
    framed = [(framing, framing.frame(record, 0)) for framing, record in documents]
    sources: list[list[int]] | None = None
    begins = [framing.begin for framing, _ in framed if isinstance(framing, EncoderDecoderPairs)]
    if len(begins) == len(framed):
        sources = [example.sources[0].tolist() for _, example in framed]
        prompts = [[begin] for begin in begins]
    else:
        prompts = [_prompt(example) for _, example in framed]
    # A batch is as wide as its longest prompt, and all its texts have the room that this one leaves.
    sizes = [len(ids) for ids in sources or prompts]
    room = inner.shape.max_seq_len + (sources is not None)
    fitting = [number for number, size in enumerate(sizes) if size < room]
    said = [""] * len(framed)
    for numbers in _batches(sorted(fitting, key=sizes.__getitem__)):
        written = generate_rows(
            model,
            [prompts[number] for number in numbers],
            None if sources is None else [sources[number] for number in numbers],
            vocab_size=tokenizer.vocab_size,
            eot_id=tokenizer.eot_id,
            max_tokens=longest,
            search=search,
        )
        for number, ids in zip(numbers, written, strict=True):
            said[number] = tokenizer.decode(ids)
    return said


def _prompt(example: Example) -> list[int]:
    """Return the ids before the first target."""
    (segment,) = example.segments
    first = int(np.flatnonzero(segment.targets_P != IGNORE_INDEX)[0])
    ids: list[int] = segment.tokens_P[: first + 1].tolist()
    return ids


def _answered(
    model: nn.Module,
    documents: Sequence[tuple[Framing, Record]],
    tokenizer: Tokenizer,
    show: Show,
    search: Search,
) -> Measures:
    given, right = {}, {}
    said = _said(model, documents, tokenizer, 2 * _LONGEST_ANSWER, search)
    for number, ((framing, record), text) in enumerate(zip(documents, said, strict=True)):
        assert isinstance(framing, AnsweredQuestions)
        given[str(number)] = "" if text == framing.unanswerable else text
        right[str(number)] = _right(record, tokenizer)
        show(_asked(record, tokenizer), given[str(number)], " | ".join(right[str(number)]))
    return score_answers(given, right)


def _asked(record: Record, tokenizer: Tokenizer) -> str:
    return f"{context_of(record, tokenizer)}\n{tokenizer.decode(record[QUESTION].tolist())}"


def _right(record: Record, tokenizer: Tokenizer) -> list[str]:
    return [answer["text"] for answer in answers_of(record, tokenizer)]


def _extracted(
    model: nn.Module, documents: Sequence[tuple[Framing, Record]], tokenizer: Tokenizer, show: Show
) -> Measures:
    given, right = {}, {}
    for number, (framing, record) in enumerate(documents):
        assert isinstance(framing, AnswerSpans)
        span = find_span(model, framing, record, tokenizer.eot_id)
        given[str(number)] = framing.answer_text(record, span.first, span.last) if span.margin > 0 else ""
        right[str(number)] = _right(record, tokenizer)
        show(_asked(record, tokenizer), given[str(number)], " | ".join(right[str(number)]))
    return score_answers(given, right)


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a context, by its first and last id, and its score minus that of "no answer"."""

    first: int
    last: int
    margin: float


@torch.no_grad()
def find_span(model: nn.Module, framing: AnswerSpans, record: Record, eot_id: int) -> Span:
    """Return the likeliest span over all windows of a question.

    The score of a span of at most 30 ids is the sum of its start and end logits; that of "no answer" is the
    sum at the first position, the lowest of all windows (Devlin et al. 2019, section 4.3).
    """
    sizes = {name: np.array([ids.size]) for name, ids in record.items()}
    parts = framing.measure(sizes, lambda _: record).part_E.tolist()
    windows = [framing.frame(record, part).segments[0] for part in parts]
    width = max(window.tokens_P.size for window in windows)
    arrays = laid_out([[window.tokens_P] for window in windows], width, eot_id)
    logits_WT2: Tensor = model(*map(torch.from_numpy, arrays)).float()
    best, found, nothing = -np.inf, (0, 0), np.inf
    for part, window, logits_T2 in zip(parts, windows, logits_WT2, strict=True):
        nothing = min(nothing, float(logits_T2[0].sum()))
        place_C = np.flatnonzero(window.targets_P != IGNORE_INDEX)[1:]
        start_C, end_C = logits_T2[place_C].unbind(-1)
        scores_CC = start_C[:, None] + end_C[None]
        allowed_CC = torch.ones_like(scores_CC).triu().tril(_LONGEST_ANSWER - 1).bool()
        scores_CC = scores_CC.masked_fill(~allowed_CC, -torch.inf)
        score, at = scores_CC.flatten().max(0)
        if float(score) > best:
            first = framing.first_id(part)
            start, end = divmod(int(at), place_C.size)
            best, found = float(score), (first + start, first + end)
    return Span(*found, best - nothing)


def _ranked(model: nn.Module, records: Sequence[Record], tokenizer: Tokenizer, show: Show) -> Measures:
    query_QC, passage_QC = (_embedded(model, records, field, tokenizer) for field in (SOURCE, TARGET))
    texts = {
        field: [tokenizer.decode(record[field].tolist()) for record in records] for field in (SOURCE, TARGET)
    }
    # equal passages are equally right
    same: dict[str, set[int]] = {}
    for number, text in enumerate(texts[TARGET]):
        same.setdefault(text, set()).add(number)
    right = [same[text] for text in texts[TARGET]]
    places = min(_PLACES, len(records))
    found = search_exact(query_QC, passage_QC, places)
    for query, (best, *_), passage in zip(texts[SOURCE], found.tolist(), texts[TARGET], strict=True):
        show(query, texts[TARGET][best], passage)
    words = BM25(texts[TARGET]).search(texts[SOURCE], places)
    scores = score_rankings(found, right, places)
    return {**scores, **{f"bm25_{k}": v for k, v in score_rankings(words, right, places).items()}}


@torch.no_grad()
def _embedded(
    model: nn.Module, records: Sequence[Record], field: str, tokenizer: Tokenizer
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return the unit vectors of one side of pairs; what is longer than the model's context is cut."""
    inner: Any = model
    parts, room = [], inner.shape.max_seq_len - 2
    for batch in _batches(records):
        texts = [tokenizer.enclosed(record[field][:room]) for record in batch]
        width = max(text.size for text in texts)
        arrays = laid_out([[text] for text in texts], width, tokenizer.eot_id)
        parts.append(model(*map(torch.from_numpy, arrays)).float().numpy())
    return np.concatenate(parts)


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _TOGETHER):
        yield items[start : start + _TOGETHER]
