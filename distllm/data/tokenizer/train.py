"""Train a lossless tokenizer over bytes: BPE (Sennrich 2016, as in GPT-2) or unigram (Kudo 2018)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.tokenizer.description import ALPHABET
from distllm.errors import ConfigError, TokenizerError

EOT = "<|endoftext|>"
_DEFAULT_FREQUENCY = TokenizerConfig().min_frequency
_SCORE_DIGITS = 6
_UNSEEN_STEP = 1e-4  # between the scores that the trainer gives to bytes it has not seen


def train_description(texts: Iterable[str], config: TokenizerConfig) -> str:
    """Return the tokenizer.json learnt from ``texts``.

    The vocabulary is smaller than ``config.vocab_size`` if the texts hold too little.

    Raises:
        ConfigError: the special tokens are unusable or do not fit, or a key does not apply.
        TokenizerError: a text holds lone surrogates.
    """
    special = _special_tokens(config)
    model = models.BPE() if config.kind == "bpe" else models.Unigram()
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    try:
        inner.train_from_iterator(texts, _trainer(config, special, alphabet))
    except (TypeError, UnicodeEncodeError) as error:
        raise surrogates_error(error) from error
    if config.kind == "bpe":
        return str(inner.to_str())
    return _settle_unigram(json.loads(inner.to_str()), special)


def surrogates_error(error: Exception) -> TokenizerError:
    """Return the error for a text that cannot be encoded as UTF-8."""
    return TokenizerError(
        f"a text cannot be encoded as UTF-8: {error}", remedy="pass text without lone surrogates"
    )


def _trainer(config: TokenizerConfig, special: list[str], alphabet: list[str]) -> Any:
    if config.kind == "bpe":
        return trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            min_frequency=config.min_frequency,
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
        )
    if config.min_frequency != _DEFAULT_FREQUENCY:
        raise ConfigError(
            "tokenizer.min_frequency does not apply to a unigram model",
            where="tokenizer.min_frequency",
            remedy=f"leave it at {_DEFAULT_FREQUENCY}, or set tokenizer.kind=bpe",
        )
    return trainers.UnigramTrainer(
        vocab_size=config.vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )


def _special_tokens(config: TokenizerConfig) -> list[str]:
    """Return EOT and the configured special tokens, none of which may be an ordinary token."""
    special = [EOT, *config.special_tokens]
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole = [token for token in special if len(splitter.pre_tokenize_str(token)) < 2]
    if whole or len(set(special)) < len(special):
        raise ConfigError(
            f"tokenizer.special_tokens holds {whole[0]!r}, which text could spell"
            if whole
            else "tokenizer.special_tokens names a token twice, or the end-of-text token",
            where="tokenizer.special_tokens",
            remedy="name each once, with letters between punctuation, such as <|im_start|>",
        )
    if len(special) + 256 > config.vocab_size:
        raise ConfigError(
            f"tokenizer.vocab_size={config.vocab_size} is less than 256 bytes "
            f"and {len(special)} special tokens",
            where="tokenizer.vocab_size",
            remedy=f"set at least {len(special) + 256}",
        )
    return special


def _settle_unigram(description: dict[str, Any], special: Iterable[str]) -> str:
    """Order pieces by rounded score, then name, because the trainer adds scores in the order of a hash table.

    Last digits differ from run to run, and equal scores would change places. Bytes that it has not
    seen get the lowest scores, in any order: here they share the lowest.
    """
    names = set(special)
    scores = dict(description["model"]["vocab"])
    lowest = min((score for name, score in scores.items() if name not in names), default=0.0)
    unseen = lowest + 257 * _UNSEEN_STEP
    pieces = {
        name: round(lowest if name in ALPHABET and score <= unseen else score, _SCORE_DIGITS)
        for name, score in scores.items()
    }
    learnt = sorted((-score, name) for name, score in pieces.items() if name not in names)
    vocab = [*([name, 0.0] for name in special), *([name, -negative] for negative, name in learnt)]
    description["model"]["vocab"] = vocab
    return json.dumps(description, ensure_ascii=False)
