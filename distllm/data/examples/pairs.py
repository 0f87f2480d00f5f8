"""Framings of documents whose fields are texts; sizes follow from the number of ids.

``eot`` ends texts, and begins those that a model writes, unless an imported model begins with another id;
``fixed`` texts between the fields are encoded once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from distllm.data.examples.framing import Example, Ids, Measured, Record, Segment
from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError

SOURCE, TARGET = "source", "target"
PROMPT, CHOSEN, REJECTED = "prompt", "chosen", "rejected"
_FIELD = re.compile(r"\{(\w+)\}")

Sizes = Mapping[str, NDArray[np.int64]]
Read = Callable[[int], Record]


def parse_template(template: str, fields: tuple[str, ...], tokenizer: Tokenizer) -> list[str | Ids]:
    r"""Return a template as names of fields and the ids of the texts between them.

    ``\n`` in it is a new line: a command line has no other way to write one.

    Raises:
        ConfigError: it names another field, or one of ``fields`` not at all.
    """
    pieces = _FIELD.split(template.replace("\\n", "\n"))
    named = pieces[1::2]
    if sorted(named) != sorted(fields):
        raise ConfigError(
            f"the template {template!r} names {', '.join(named) or 'no field'}, "
            f"and the documents have {', '.join(fields)} to be asked",
            where="task.prompt",
            remedy="name each once in braces, such as: " + " ".join(f"{{{field}}}" for field in fields),
        )
    return [
        piece if place % 2 else np.array(tokenizer.encode(piece), dtype=np.int64)
        for place, piece in enumerate(pieces)
        if piece
    ]


def render(parts: list[str | Ids], record: Record) -> Ids:
    """Return the ids of a template filled with the fields of a document."""
    filled = [record[part] if isinstance(part, str) else part for part in parts]
    return np.concatenate([np.zeros(0, dtype=np.int64), *filled])


def rendered_size(parts: list[str | Ids], sizes: Sizes) -> NDArray[np.int64]:
    """Return how many ids `render` gives for every document."""
    fixed = sum(part.size for part in parts if not isinstance(part, str))
    filled_N = np.sum([sizes[part] for part in parts if isinstance(part, str)], axis=0)
    total_N: NDArray[np.int64] = filled_N + fixed
    return total_N


class EncoderDecoderPairs:
    """Source and EOT for the encoder; the decoder's text is its first id, the target and EOT.

    Attributes:
        begin: the first id of the decoder; EOT if none is given, as for all models trained here.
    """

    fields: tuple[str, ...] = (SOURCE, TARGET)
    one_a_row = False
    has_source = True

    def __init__(self, tokenizer: Tokenizer, begin: int | None = None) -> None:
        self._eot = tokenizer.eot_id
        self.begin = self._eot if begin is None else begin

    def measure(self, sizes: Sizes, read: Read) -> Measured:
        """See `Framing`."""
        return Measured.one_each(sizes[TARGET] + 1, sizes[SOURCE] + 1)

    def frame(self, record: Record, part: int) -> Example:
        """See `Framing`."""
        whole = np.concatenate([[self.begin], record[TARGET], [self._eot]])
        source = np.concatenate([record[SOURCE], [self._eot]])
        return Example((Segment.predicting(whole, 1),), (source,))


class DecoderPairs:
    """One text: EOT, the prompt with the source in it, the target, EOT; the loss is on the last two.

    Args:
        tokenizer: of the dataset.
        prompt: what stands before the target, with ``{source}`` in it.
        begin: what stands in place of the first EOT.
    """

    fields: tuple[str, ...] = (SOURCE, TARGET)
    one_a_row = False
    has_source = False

    def __init__(self, tokenizer: Tokenizer, prompt: str, begin: int | None = None) -> None:
        self._eot = tokenizer.eot_id
        self._begin = self._eot if begin is None else begin
        self._prompt = parse_template(prompt, (SOURCE,), tokenizer)

    def measure(self, sizes: Sizes, read: Read) -> Measured:
        """See `Framing`."""
        return Measured.one_each(1 + rendered_size(self._prompt, sizes) + sizes[TARGET])

    def frame(self, record: Record, part: int) -> Example:
        """See `Framing`."""
        asked = render(self._prompt, record)
        whole = np.concatenate([[self._begin], asked, record[TARGET], [self._eot]])
        return Example((Segment.predicting(whole, 1 + asked.size),))


class ContrastivePairs:
    """A query and its passage, each between EOTs and in its own row."""

    fields: tuple[str, ...] = (SOURCE, TARGET)
    one_a_row = True
    has_source = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def measure(self, sizes: Sizes, read: Read) -> Measured:
        """See `Framing`."""
        return Measured.one_each(sizes[TARGET] + 2, sizes[SOURCE] + 2)

    def frame(self, record: Record, part: int) -> Example:
        """See `Framing`. The passage's first position carries the one target of the pair."""
        query, passage = (self._tokenizer.enclosed(record[field]) for field in self.fields)
        segment = Segment.unscored(passage)
        segment.targets_P[0] = 0
        return Example((segment,), (query,))


class PreferencePairs:
    """Two segments in one row: the prompt with the preferred answer, and the prompt with the other."""

    fields: tuple[str, ...] = (PROMPT, CHOSEN, REJECTED)
    one_a_row = False
    has_source = False

    def __init__(self, tokenizer: Tokenizer, prompt: str, begin: int | None = None) -> None:
        self._eot = tokenizer.eot_id
        self._begin = self._eot if begin is None else begin
        self._prompt = parse_template(prompt, (PROMPT,), tokenizer)

    def measure(self, sizes: Sizes, read: Read) -> Measured:
        """See `Framing`."""
        asked_N = 1 + rendered_size(self._prompt, sizes)
        return Measured.one_each(2 * asked_N + sizes[CHOSEN] + sizes[REJECTED])

    def frame(self, record: Record, part: int) -> Example:
        """See `Framing`."""
        asked = np.concatenate([[self._begin], render(self._prompt, record)])
        answers = (np.concatenate([asked, record[name], [self._eot]]) for name in (CHOSEN, REJECTED))
        return Example(tuple(Segment.predicting(whole, asked.size) for whole in answers))
