"""Proof that an exported folder computes what the trained model computes.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import torch

from distllm.errors import IntegrityError, MissingDependency
from distllm.models.init import Model
from distllm.seeds import derive_seed

TOLERANCE = 1e-5
_ROWS = 2


@torch.no_grad()
def verify_export(out: Path, model: Model, seed: int = 0) -> float:
    """Load ``out`` with `transformers` and compare logits in fp32 on random rows of full length.

    Returns:
        The largest absolute difference between two logits.

    Raises:
        MissingDependency: `transformers` is not installed.
        IntegrityError: the logits differ by more than `TOLERANCE`.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise MissingDependency(
            "checking an export needs transformers", remedy="pip install 'distllm[eval]', or verify=false"
        ) from error
    device = next(model.parameters()).device
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).to(device).eval()
    generator = torch.Generator().manual_seed(derive_seed(seed, "verify"))
    size = (_ROWS, model.shape.max_seq_len)
    tokens_BT = torch.randint(model.shape.vocab_size, size, generator=generator).to(device)
    positions_BT = torch.arange(size[1], device=device).expand(size)
    difference = float((model(tokens_BT, positions_BT) - theirs(tokens_BT).logits).abs().max())
    if not difference <= TOLERANCE:
        raise IntegrityError(
            f"logits of the exported model differ by {difference:.1e}, more than {TOLERANCE:.0e}",
            where=str(out),
            remedy="export again; if it stays so, report it with the model's configuration",
        )
    return difference
