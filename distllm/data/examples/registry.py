"""From a task and the fields of a source to the framing of its documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distllm.config.schema import Config
from distllm.data.examples.dialogue import AnsweredQuestions, Conversations
from distllm.data.examples.framing import Framing
from distllm.data.examples.pairs import (
    ContrastivePairs,
    DecoderPairs,
    EncoderDecoderPairs,
    PreferencePairs,
)
from distllm.data.examples.windows import AnswerSpans
from distllm.data.tokenizer import Tokenizer
from distllm.errors import DataError

Builder = Callable[[Config, Tokenizer, int | None], Framing]


def _seq2seq(config: Config, tokenizer: Tokenizer, begin: int | None) -> Framing:
    if config.model.family == "encoder_decoder":
        return EncoderDecoderPairs(tokenizer, begin)
    return DecoderPairs(tokenizer, config.task.prompt, begin)


# What a task makes of documents with certain fields.
_FRAMINGS: Mapping[str, Mapping[tuple[str, ...], Builder]] = {
    "seq2seq": {EncoderDecoderPairs.fields: _seq2seq},
    "instruct": {
        Conversations.fields: lambda config, tokenizer, begin: Conversations(tokenizer),
        AnsweredQuestions.fields: lambda config, tokenizer, begin: AnsweredQuestions(
            tokenizer, config.task.question_prompt, config.task.unanswerable, begin
        ),
        DecoderPairs.fields: lambda config, tokenizer, begin: DecoderPairs(
            tokenizer, config.task.prompt, begin
        ),
    },
    "extractive_qa": {
        AnswerSpans.fields: lambda config, tokenizer, begin: AnswerSpans(
            tokenizer, config.data.seq_len, config.task.stride
        )
    },
    "contrastive": {ContrastivePairs.fields: lambda config, tokenizer, begin: ContrastivePairs(tokenizer)},
    "dpo": {
        PreferencePairs.fields: lambda config, tokenizer, begin: PreferencePairs(
            tokenizer, config.task.preference_prompt, begin
        )
    },
}
FRAMED_TASKS = frozenset(_FRAMINGS)


def framing_of(
    config: Config, source: str, fields: tuple[str, ...], tokenizer: Tokenizer, begin: int | None = None
) -> Framing:
    """Return the framing of a source's documents for the task of ``config``.

    ``begin`` is the first id of texts, for an imported model that was not trained to begin with EOT.

    Raises:
        DataError: the task has no use for documents with these fields.
    """
    known = _FRAMINGS[config.task.name]
    if tuple(fields) not in known:
        wanted = " or ".join(", ".join(names) for names in known)
        raise DataError(
            f"task.name={config.task.name} trains on documents with the fields {wanted}; "
            f"those of source {source} have {', '.join(fields)}",
            where="data.out",
            remedy="prepare such documents (data=pairs, data=qa, data=chat), or choose another task",
        )
    return known[tuple(fields)](config, tokenizer, begin)
