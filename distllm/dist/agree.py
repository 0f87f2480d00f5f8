"""Decisions that rank 0 takes for all ranks; its errors are raised on all ranks as well."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from distllm.dist.collectives import broadcast_json
from distllm.dist.topology import Topology
from distllm.errors import DistllmError, error_from_facts

_POLL_SECONDS = 5.0


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
            answer = error.facts()
    answer = broadcast_json(answer, topology)
    if "error" not in answer:
        return answer["value"]
    raised = error_from_facts(answer)
    raised.everywhere = True
    raise raised


def agree_when_done(topology: Topology, has_ended: Callable[[float], bool], decide: Callable[[], Any]) -> Any:
    """Like `agree`, after rank 0 has waited for work that may take longer than a timeout. Collective.

    No rank waits in one collective for more than a few seconds, however long the work takes.

    Args:
        topology: this rank's place.
        has_ended: waits on rank 0 for at most the given seconds, and returns whether the work has ended.
        decide: called on rank 0 after that.

    Raises:
        DistllmError: what ``decide`` raised, on every rank.
    """
    while not agree(topology, lambda: has_ended(_POLL_SECONDS)):
        pass
    return agree(topology, decide)


def agree_after_work(topology: Topology, work: Callable[[], Any]) -> Any:
    """Like `agree` on the result of ``work``, which may take longer than a timeout. Collective.

    Raises:
        DistllmError: what ``work`` raised, on every rank.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        job = thread.submit(work) if topology.is_main else None
        return agree_when_done(
            topology,
            lambda seconds: job is None or bool(wait([job], timeout=seconds).done),
            lambda: job.result() if job is not None else None,
        )
