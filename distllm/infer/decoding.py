"""Rows of text that grow by one token a step: the model and its cache of keys and values.

Shapes: R rows, T positions of one forward pass, S positions of the source, V ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from distllm.errors import ConfigError
from distllm.models.cache import KVCache
from distllm.ops.compiled import anything_compiled


class Decoding:
    """Rows that are being generated together.

    Shorter prompts are padded at the front, shorter sources at the end; no position attends to padding.
    A row that has filled the model's context is fed at its last position while others go on; its logits
    have no meaning then.

    Args:
        model: a decoder or an encoder-decoder, or an engine around one.
        prompts: what each row of the decoder begins with, at least one id.
        sources: what the encoder reads for each row; None for a decoder.
        max_tokens: the most tokens that are appended to a row.
        beams: the most rows that each prompt may become.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        sources: Sequence[Sequence[int]] | None,
        max_tokens: int,
        beams: int = 1,
    ) -> None:
        inner: Any = model
        first = next(model.parameters())
        longest = max(map(len, prompts))
        self._model, self._device = model, first.device
        self._starts_R = torch.tensor([longest - len(prompt) for prompt in prompts], device=self._device)
        padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        self._inputs_RT = torch.tensor(padded, device=self._device)
        self._source = () if sources is None else _source(sources, self._device)
        self._length, self._last = 0, inner.shape.max_seq_len - 1
        self._cache = KVCache(
            inner.shape,
            len(prompts) * beams,
            longest + max_tokens,
            first.device,
            first.dtype,
            self._starts_R if len(set(map(len, prompts))) > 1 else None,
        )

    def logits(self) -> Tensor:
        """Feed what was not fed yet; return logits_RV after the last position, on the CPU, at least fp32."""
        width = self._inputs_RT.shape[1]
        places_T = torch.arange(self._length, self._length + width, device=self._device)
        positions_RT = (places_T - self._starts_R[:, None]).clamp(0, self._last)
        self._length += width
        logits_R1V: Tensor = self._model(
            *self._source, self._inputs_RT, positions_RT, cache=self._cache, last_only=True
        )
        return logits_R1V[:, -1].to("cpu", torch.promote_types(logits_R1V.dtype, torch.float32))

    def append(self, ids: Sequence[int] | Tensor, rows: Tensor | None = None) -> None:
        """Append an id to each row, after making row i of row ``rows[i]`` if that is given.

        The number of rows may grow then. Each source keeps its rows together, as many as any other has.
        """
        if rows is not None:
            rows = rows.to(self._device)
            self._cache.reorder(rows)
            self._starts_R = self._starts_R[rows]
        self._inputs_RT = torch.as_tensor(ids, device=self._device)[:, None]


def _source(sources: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, positions and segments of the sources; padding is a segment of its own."""
    longest = max(map(len, sources))
    tokens_RS = torch.tensor([[*source, *[0] * (longest - len(source))] for source in sources], device=device)
    lengths_R1 = torch.tensor([[len(source)] for source in sources], device=device)
    places_RS = torch.arange(longest, device=device).expand_as(tokens_RS)
    return tokens_RS, places_RS, (places_RS >= lengths_R1).long()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, bypass compiled blocks, and undo both."""
    was_training = model.training
    model.eval()
    # Every length of the cache is another shape: compiled blocks are bypassed.
    stance = torch.compiler.set_stance("force_eager") if anything_compiled() else nullcontext()
    try:
        with torch.no_grad(), stance:
            yield
    finally:
        model.train(was_training)


def room(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sources: Sequence[Sequence[int]] | None,
    max_tokens: int,
) -> list[int]:
    """Return how many tokens may be appended to each row.

    Raises:
        ConfigError: the model does not generate, or a prompt or source is empty or too long.
    """
    inner: Any = model
    shape = inner.shape
    if shape.family == "encoder":
        raise ConfigError(
            "an encoder does not generate text",
            where="model.family",
            remedy="use a decoder or an encoder-decoder",
        )
    if (sources is None) == (shape.family == "encoder_decoder"):
        raise ValueError("an encoder-decoder needs sources, and a decoder none")
    for texts, kind in ((prompts, "prompt"), (sources or (), "source")):
        for text in texts:
            if not 0 < len(text) < shape.max_seq_len + (kind == "source"):
                raise ConfigError(
                    f"the {kind} has {len(text)} tokens, and the model's context {shape.max_seq_len}",
                    where="prompt",
                    remedy=f"give a prompt of 1 to {shape.max_seq_len - 1} tokens",
                )
    return [min(max_tokens, shape.max_seq_len - len(prompt)) for prompt in prompts]
