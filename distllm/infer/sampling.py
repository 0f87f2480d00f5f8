"""Choosing the next token of texts from their logits.

Shapes: R rows, V ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distllm.seeds import derive_seed

_COLDEST = 1e-4  # below it, logits divided by the temperature overflow


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn; filters apply in this order, as in transformers.

    Attributes:
        repetition_penalty: factor by which ids that occur in the text become less likely (Keskar et al.
            2019); 1 changes nothing.
        temperature: divides the logits; below 0.0001 the likeliest token is taken.
        top_k: draw only among the k likeliest.
        top_p: draw only among the likeliest that together reach this probability (Holtzman et al. 2020).
        min_p: draw only among ids at least this fraction as likely as the likeliest (Nguyen et al. 2024).
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None


GREEDY = Sampling()


def penalised(logits_V: Tensor, past: Sequence[int], penalty: float) -> Tensor:
    """Return logits in which the ids of ``past`` are less likely."""
    if penalty == 1.0:
        return logits_V
    seen = torch.tensor(sorted({token for token in past if token < len(logits_V)}), dtype=torch.int64)
    values = logits_V[seen]
    return logits_V.index_copy(0, seen, torch.where(values < 0, values * penalty, values / penalty))


def draw_rows(
    logits_RV: Tensor, pasts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
) -> list[int]:
    """Draw an id for each row, which depends on the row's logits, past and seed alone.

    Args:
        logits_RV: of all rows.
        pasts: the ids of each text so far, for the repetition penalty.
        sampling: how tokens are drawn.
        seeds: the seed of each row's draw.

    Raises:
        ValueError: a token is to be drawn from logits that are NaN or infinite.
    """
    if sampling.repetition_penalty != 1.0:
        rows = zip(logits_RV, pasts, strict=True)
        logits_RV = torch.stack([penalised(row, past, sampling.repetition_penalty) for row, past in rows])
    found: list[int]
    if sampling.temperature < _COLDEST:
        found = logits_RV.argmax(dim=1).tolist()
        return found
    logits_RV = logits_RV.double() / sampling.temperature
    ids_RV = None
    if sampling.top_k is not None or sampling.top_p is not None:
        logits_RV, ids_RV = logits_RV.sort(descending=True, stable=True)
    probs_RV = logits_RV[:, : sampling.top_k].softmax(dim=1)
    if sampling.top_p is not None:
        # An id stays if those before it have not reached the mass: the likeliest always does.
        probs_RV[:, 1:][probs_RV.cumsum(dim=1)[:, :-1] >= sampling.top_p] = 0.0
    if sampling.min_p is not None:
        probs_RV[probs_RV < sampling.min_p * probs_RV.amax(dim=1, keepdim=True)] = 0.0
    mass_RV = probs_RV.cumsum(dim=1)
    if not mass_RV[:, -1].isfinite().all():
        raise ValueError("the model's logits are not finite: no token can be drawn from them")
    # 52 bits: their share of a mass is below the mass, whatever is rounded.
    shares = [[(derive_seed(seed, "share") >> 11) / 2**52] for seed in seeds]
    share_R1 = torch.tensor(shares, dtype=mass_RV.dtype, device=mass_RV.device)
    place_R1 = torch.searchsorted(mass_RV, share_R1 * mass_RV[:, -1:], right=True)
    found = (place_R1 if ids_RV is None else ids_RV.gather(1, place_R1))[:, 0].tolist()
    return found
