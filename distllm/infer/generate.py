"""Continuing a prompt, one token at a time.

Shapes: B = 1 row, T positions of one forward pass, V ids of the tokenizer (the model's vocabulary
is padded beyond them; padding is never sampled).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError
from distllm.models.cache import KVCache
from distllm.ops.compiled import anything_compiled
from distllm.seeds import derive_seed


def sample_text(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int,
) -> str:
    """Return a continuation of ``prompt``, read as the beginning of a document. See `generate`."""
    ids = generate(
        model,
        [tokenizer.eot_id, *tokenizer.encode(prompt)],
        vocab_size=tokenizer.vocab_size,
        eot_id=tokenizer.eot_id,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    return tokenizer.decode(ids)


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt_ids: Sequence[int],
    *,
    vocab_size: int,
    eot_id: int,
    max_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> list[int]:
    """Continue ``prompt_ids`` until the end of the text, ``max_tokens``, or the end of the context.

    On several ranks every rank calls this alike, and all run the same number of forward passes,
    whatever is sampled: under ZeRO-3 a forward pass is a collective.

    Args:
        model: a decoder, or an engine around one.
        prompt_ids: at least one id.
        vocab_size: V; ids beyond it are never sampled.
        eot_id: the id that ends a text; it is not part of the result.
        max_tokens: longest continuation.
        temperature: 0 takes the likeliest token.
        top_k: sample among the k likeliest only.
        top_p: sample among the likeliest that together reach this probability only.
        seed: root of the random stream; token i depends on ``seed`` and i, not on earlier draws.

    Raises:
        ConfigError: the prompt leaves no room in the context the model was trained on.
    """
    decoder: Any = model
    context, first = decoder.shape.max_seq_len, next(model.parameters())
    if not 0 < len(prompt_ids) < context:
        raise ConfigError(
            f"the prompt has {len(prompt_ids)} tokens, and the model's context {context}",
            where="prompt",
            remedy=f"give a prompt of 1 to {context - 1} tokens",
        )
    steps = min(max_tokens, context - len(prompt_ids))
    cache = KVCache(decoder.shape, 1, len(prompt_ids) + steps, first.device, first.dtype)
    was_training = model.training
    model.eval()
    ids, inputs, ended = list(prompt_ids), list(prompt_ids), False
    # Every length of the cache is another shape: compiled blocks are bypassed.
    with torch.compiler.set_stance("force_eager") if anything_compiled() else nullcontext():
        for step in range(steps):
            logits_V = _next_logits(model, inputs, len(ids) - len(inputs), cache)[:vocab_size]
            if not ended:
                drawn = _draw(logits_V, temperature, top_k, top_p, derive_seed(seed, "sample", step))
                ended = drawn == eot_id
                inputs = [drawn]
                ids += inputs
            if ended and not _in_lockstep():
                break
    model.train(was_training)
    new_ids = ids[len(prompt_ids) :]
    return new_ids[:-1] if ended else new_ids


def _next_logits(model: nn.Module, ids: list[int], start: int, cache: KVCache) -> Tensor:
    """Feed ``ids``, which begin at position ``start``; return the fp64 logits after the last, on the CPU."""
    device = next(model.parameters()).device
    tokens_BT = torch.tensor([ids], device=device)
    positions_BT = torch.arange(start, start + len(ids), device=device)[None]
    logits_BTV: Tensor = model(tokens_BT, positions_BT, cache=cache)
    return logits_BTV[0, -1].to("cpu", torch.float64)


def _draw(logits_V: Tensor, temperature: float, top_k: int | None, top_p: float | None, seed: int) -> int:
    """Draw one id."""
    if temperature == 0.0:
        return int(logits_V.argmax())
    sorted_V, ids_V = (logits_V / temperature).sort(descending=True, stable=True)
    probs_V = sorted_V[:top_k].softmax(dim=0)
    if top_p is not None:
        # An id stays if those before it have not reached the mass: the likeliest always does.
        probs_V[1:][probs_V.cumsum(dim=0)[:-1] >= top_p] = 0.0
    generator = torch.Generator().manual_seed(seed)
    return int(ids_V[torch.multinomial(probs_V, 1, generator=generator)])


def _in_lockstep() -> bool:
    """Whether other ranks may be waiting for this one's forward passes."""
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
