"""Decisions that rank 0 takes for everybody, its errors included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import distllm.errors
from distllm.dist.collectives import broadcast_json
from distllm.dist.topology import Topology
from distllm.errors import DistllmError


def agree(topology: Topology, decide: Callable[[], Any]) -> Any:
    """Run ``decide`` on rank 0 and return its JSON-able answer on every rank. Collective.

    Raises:
        DistllmError: what ``decide`` raised, with the same class and words on every rank, so that
            none is left waiting; it is marked ``everywhere`` because one rank's message suffices.
    """
    answer: dict[str, Any] = {}
    if topology.is_main:
        try:
            answer = {"value": decide()}
        except DistllmError as error:
            answer = {
                "error": type(error).__name__,
                "cause": error.cause,
                "where": error.where,
                "remedy": error.remedy,
            }
    answer = broadcast_json(answer, topology)
    if "error" not in answer:
        return answer["value"]
    failure: type[DistllmError] = getattr(distllm.errors, answer["error"])
    raised = failure(answer["cause"], where=answer["where"], remedy=answer["remedy"])
    raised.everywhere = True
    raise raised
