"""A check that an exported folder computes the same as the trained model.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from distllm.errors import IntegrityError, MissingDependency
from distllm.fsio import read_json
from distllm.models.encoder import Encoder
from distllm.models.heads import EmbeddingHead, SpanHead
from distllm.models.init import Model
from distllm.seeds import derive_seed

TOLERANCE = 1e-5
_ROWS, _LONGEST = 2, 512


@torch.no_grad()
def verify_export(out: Path, model: Model, seed: int = 0) -> float:
    """Load ``out`` with `transformers` and compare outputs in fp32 on random rows.

    Returns:
        The largest absolute difference between two logits (or coordinates of vectors).

    Raises:
        MissingDependency: `transformers` is not installed.
        IntegrityError: the outputs differ by more than `TOLERANCE`.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingDependency(
            "checking an export needs transformers", remedy="pip install 'distllm[eval]', or verify=false"
        ) from error
    device = next(model.parameters()).device
    model_class = getattr(transformers, read_json(out / "config.json")["architectures"][0])
    with _without_bars(transformers.utils.logging):
        theirs = model_class.from_pretrained(out, dtype=torch.float32).to(device).eval()
    generator = torch.Generator().manual_seed(derive_seed(seed, "verify"))
    size = (_ROWS, min(model.shape.max_seq_len, _LONGEST))
    tokens_BT = torch.randint(model.shape.vocab_size, size, generator=generator).to(device)
    difference = largest_difference(model, theirs, tokens_BT)
    if not difference <= TOLERANCE:
        raise IntegrityError(
            f"logits of the exported model differ by {difference:.1e}, more than {TOLERANCE:.0e}",
            where=str(out),
            remedy="export again; if it stays so, report it with the model's configuration",
        )
    return difference


@contextmanager
def _without_bars(logging: Any) -> Iterator[None]:
    """Switch the progress bars of `transformers` off."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@torch.no_grad()
def largest_difference(model: Model, theirs: Any, tokens_BT: Tensor) -> float:
    """Return the largest difference between the outputs of a model and of its export in `transformers`.

    An encoder-decoder gets the tokens as target, and reversed as source.
    """
    positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
    if model.shape.family == "encoder_decoder":
        source_BS = tokens_BT.flip(1)
        mine = model(source_BS, positions_BT, None, tokens_BT, positions_BT)
        other = theirs(input_ids=source_BS, decoder_input_ids=tokens_BT).logits
        return float((mine - other).abs().max())
    mine, said = model(tokens_BT, positions_BT), theirs(tokens_BT)
    if isinstance(model, Encoder) and isinstance(model.head, SpanHead):
        other = torch.stack([said.start_logits, said.end_logits], dim=-1)
    elif isinstance(model, Encoder) and isinstance(model.head, EmbeddingHead):
        hidden_BTC = said.last_hidden_state
        cls = model.shape.pooling == "cls"
        other = normalize(hidden_BTC[:, 0] if cls else hidden_BTC.mean(dim=1), dim=-1)
    else:
        other = said.logits
    return float((mine - other).abs().max())
