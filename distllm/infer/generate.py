"""Generating text, one token at a time: continuing prompts or, with an encoder-decoder, reading sources.

Shapes: R rows, V ids of the tokenizer. A model's vocabulary may be padded beyond them; padding is never
drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import nn

from distllm.data.examples.prompts import Prompt
from distllm.data.tokenizer import Tokenizer
from distllm.infer.beam import NO_SEARCH, Search, beam_search
from distllm.infer.decoding import Decoding, evaluating, room
from distllm.infer.sampling import GREEDY, Sampling, draw_rows
from distllm.seeds import derive_seed


def sample_text(
    model: nn.Module, tokenizer: Tokenizer, prompt: str, *, max_tokens: int, temperature: float, seed: int
) -> str:
    """Return a decoder's continuation of ``prompt``, read as the beginning of a document.

    Of a prompt that fills the model's context only the end is continued: a sample must not stop a run.
    """
    inner: Any = model
    ids, context = [tokenizer.eot_id, *tokenizer.encode(prompt)], inner.shape.max_seq_len
    kept = Prompt(ids if len(ids) < context else ids[-max(1, context // 2) :])
    sampling = Sampling(temperature=temperature)
    return write_texts(model, tokenizer, [kept], max_tokens=max_tokens, sampling=sampling, seed=seed)[0]


def write_texts(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    search: Search = NO_SEARCH,
    seed: int = 0,
    first_row: int = 0,
) -> list[str]:
    """Return what a model writes for each prompt, computed together. See `generate_rows`."""
    sources = [prompt.source for prompt in prompts if prompt.source is not None]
    found = generate_rows(
        model,
        [prompt.ids for prompt in prompts],
        sources or None,
        vocab_size=tokenizer.vocab_size,
        eot_id=tokenizer.eot_id,
        max_tokens=max_tokens,
        sampling=sampling,
        search=search,
        seed=seed,
        first_row=first_row,
    )
    return [tokenizer.decode(ids) for ids in found]


def generate_rows(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sources: Sequence[Sequence[int]] | None = None,
    *,
    vocab_size: int,
    eot_id: int,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    search: Search = NO_SEARCH,
    seed: int = 0,
    first_row: int = 0,
) -> list[list[int]]:
    """Continue each prompt to its end of text, to ``max_tokens``, or to the end of the context.

    A text does not depend on the others. All ranks call this with the same arguments and run the same
    number of forward passes, because under ZeRO-3 a forward pass is a collective.

    Args:
        model: a decoder or an encoder-decoder, or an engine around one.
        prompts: what the decoder begins each text with, at least one id.
        sources: what the encoder of an encoder-decoder reads for each text.
        vocab_size: V.
        eot_id: the id that ends a text; it is not part of the result.
        max_tokens: longest continuation, at least 1.
        sampling: how a token is drawn; with several beams only its repetition penalty is used.
        search: how many texts are kept for each prompt, and how they are scored.
        seed: root of the random stream; token i of text r depends on ``seed``, r and i only.
        first_row: r of the first text, if these are part of a longer list.

    Raises:
        ConfigError: the model does not generate, or a text does not fit into its context.
    """
    rooms = room(model, prompts, sources, max_tokens)
    with evaluating(model):
        if search.beams == 1:
            decoding = Decoding(model, prompts, sources, max(rooms))
            return _draw_rows(decoding, prompts, rooms, vocab_size, eot_id, sampling, (seed, first_row))
        return beam_search(
            Decoding(model, prompts, sources, max(rooms), search.beams),
            prompts,
            search=search,
            vocab_size=vocab_size,
            eot_id=eot_id,
            rooms=rooms,
            repetition_penalty=sampling.repetition_penalty,
            lockstep=_in_lockstep(),
        )


def _draw_rows(
    decoding: Decoding,
    prompts: Sequence[Sequence[int]],
    rooms: Sequence[int],
    vocab_size: int,
    eot_id: int,
    sampling: Sampling,
    stream: tuple[int, int],
) -> list[list[int]]:
    """Draw token by token; a row that has ended goes on, unseen, until all have.

    ``stream`` is the seed and the number of the first row.
    """
    seed, first_row = stream
    texts: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    pasts = [list(prompt) for prompt in prompts]
    for step in range(max(rooms)):
        seeds = [derive_seed(seed, "sample", first_row + row, step) for row in range(len(prompts))]
        drawn = draw_rows(decoding.logits()[:, :vocab_size], pasts, sampling, seeds)
        for row, token in enumerate(drawn):
            if not ended[row] and token != eot_id:
                texts[row].append(token)
                pasts[row].append(token)
            ended[row] = ended[row] or token == eot_id or len(texts[row]) == rooms[row]
        if all(ended) and not _in_lockstep():
            break
        decoding.append(drawn)
    return texts


def _in_lockstep() -> bool:
    """Whether other ranks may be waiting for this one's forward passes."""
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
