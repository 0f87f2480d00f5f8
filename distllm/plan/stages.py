"""The blocks of a pipeline's stages: whole ones, so the longest stage sets the pace."""

from __future__ import annotations

from dataclasses import dataclass

from distllm.plan.layout import Layout, Software
from distllm.plan.work import Work


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: how many blocks it has, and whether the embedding or the output projection."""

    blocks: int
    first: bool
    last: bool


def stages_of(work: Work, layout: Layout, software: Software) -> list[Stage]:
    """Return the stages in order.

    Either equally many blocks each, with the output projection beside the last (Megatron), or cut where the
    sum of weights passes each stage's share of it, blocks and output projection alike (nanotron).
    """
    count = layout.pipeline
    if software.weighs_stages:
        blocks = _weighed(work, count)
    else:
        blocks = [work.layers // count + (stage < work.layers % count) for stage in range(count)]
    return [Stage(own, place == 0, place == count - 1) for place, own in enumerate(blocks)]


def _weighed(work: Work, count: int) -> list[int]:
    block = work.attentions * work.attention_params + work.experts * work.mlp_params
    total = work.layers * block + work.vocab * work.hidden
    blocks, stage = [0] * count, 0
    for number in range(1, work.layers + 1):
        blocks[stage] += 1
        # what passes the border still belongs to the stage before it
        if number * block * count > total * (stage + 1):
            stage += 1
    return blocks
