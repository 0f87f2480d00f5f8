"""From a configuration to the samples of a split: rows of plain text, corrupted text, or examples."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from distllm.config.schema import Config
from distllm.data.corrupt import Masking, SpanCorruption
from distllm.data.examples import FRAMED_TASKS, ExampleSplit
from distllm.data.mirror import dataset_directory
from distllm.data.stream import PackedSplit
from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError

MASK_TOKENS = ("<|mask|>", "<mask>", "[MASK]")
SENTINELS = 100


def open_split(config: Config, name: str, begin: int | None = None) -> PackedSplit | ExampleSplit:
    """Open the split ``name`` of the dataset of ``config`` for its task.

    ``begin`` is what examples begin with in place of EOT, for a model that was trained elsewhere.

    Raises:
        ConfigError: the dataset's tokenizer is missing a token that the task needs.
        DataError: the dataset is damaged, or does not fit the task.
    """
    directory, data, task = dataset_directory(config.data), config.data, config.task
    if task.name in FRAMED_TASKS:
        return ExampleSplit(directory, name, config, begin)
    packed = partial(
        PackedSplit,
        directory,
        name,
        packing=data.packing,
        on_damage=data.on_damage,
        too_long=data.too_long,
    )
    if task.name == "causal_lm":
        return packed(data.seq_len)
    tokenizer = Tokenizer.load(directory)
    corrupt: Masking | SpanCorruption
    if task.name == "masked_lm":
        row_len = data.seq_len
        corrupt = Masking(
            seed=config.seed,
            fraction=task.mask_fraction,
            mask_id=mask_id(tokenizer, directory),
            eot_id=tokenizer.eot_id,
            word_starts_V=tokenizer.word_starts() if task.whole_word else None,
            vocab_size=tokenizer.vocab_size,
        )
    else:
        row_len = data.seq_len - 2
        corrupt = SpanCorruption(
            seed=config.seed,
            fraction=task.mask_fraction,
            mean_span=task.mean_span,
            sentinel_ids=sentinel_ids(tokenizer, directory),
            eot_id=tokenizer.eot_id,
            row_len=row_len,
        )
    return packed(row_len, corrupt=corrupt)


def mask_id(tokenizer: Tokenizer, directory: Path) -> int:
    """Return the id that stands for a hidden token.

    Raises:
        ConfigError: the tokenizer has none.
    """
    for name in MASK_TOKENS:
        if ids := tokenizer.special_ids([name]):
            return ids[0]
    raise _lacking(directory, "masked_lm", f"none of {', '.join(MASK_TOKENS)}", f"['{MASK_TOKENS[0]}']")


def sentinel_ids(tokenizer: Tokenizer, directory: Path) -> list[int]:
    """Return the ids that stand for hidden spans: T5's ``<extra_id_0>``, and so on.

    Raises:
        ConfigError: the tokenizer has none.
    """
    names = [f"<extra_id_{number}>" for number in range(SENTINELS)]
    found = [id_ for name in names for id_ in tokenizer.special_ids([name])]
    if not found:
        raise _lacking(directory, "span_corruption", "no <extra_id_0>", "['<extra_id_0>','<extra_id_1>',...]")
    return found


def _lacking(directory: Path, task: str, what: str, tokens: str) -> ConfigError:
    return ConfigError(
        f"task.name={task} needs special tokens, and the tokenizer of {directory} has {what}",
        where="tokenizer.special_tokens",
        remedy=f"prepare the dataset again with tokenizer.special_tokens={tokens}",
    )
