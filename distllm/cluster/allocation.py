"""The SLURM job that this process belongs to, and the address at which its ranks meet."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from distllm.cluster.hostlist import expand
from distllm.cluster.limits import resolves
from distllm.cluster.slurm import call
from distllm.errors import LaunchError

_PORTS = range(10_000, 30_000)
"""Below the range that operating systems use for outgoing connections."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """One start of one job.

    Attributes:
        job: number of the job, in an array as ``ARRAY_TASK``: `scontrol requeue` with the number of the
            array would requeue all of its tasks.
        task: index of the task in an array, or None.
        restarts: how often SLURM has started this job before.
        nodes: in SLURM's order; rank 0 runs on the first.
    """

    job: str
    task: int | None
    restarts: int
    nodes: tuple[str, ...]

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Allocation:
        """Read it from the environment of a batch script.

        Raises:
            LaunchError: this process is not in a job.
        """
        job, nodes = env.get("SLURM_JOB_ID"), env.get("SLURM_JOB_NODELIST")
        if not job or not nodes:
            raise LaunchError(
                "this is not a SLURM job: SLURM_JOB_ID and SLURM_JOB_NODELIST are not set",
                where="environment",
                remedy="submit it: distllm submit ..., or sbatch slurm/train.sbatch ...",
            )
        array, task = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
        name = f"{array}_{task}" if array and task else job
        return cls(
            name, int(task) if task else None, int(env.get("SLURM_RESTART_COUNT") or 0), tuple(expand(nodes))
        )

    def head(self, configured: str | None) -> str:
        """Return the name or address at which all ranks meet.

        Raises:
            LaunchError: it does not resolve on this machine, the node of rank 0.
        """
        wanted = configured or self.nodes[0]
        if resolves(wanted):
            return wanted
        address = _node_address(wanted)
        if address and resolves(address):
            return address
        raise LaunchError(
            f"{wanted!r} does not resolve to an address, and SLURM knows no address for it",
            where="cluster.head" if configured else "first node of the job",
            remedy="set cluster.head to a name or address that every node can reach",
        )

    def port(self, start: int) -> int:
        """Return a port that is free on this machine now; it differs between jobs and starts."""
        digits = "".join(filter(str.isdigit, self.job))
        first = (int(digits or 0) * 7 + start * 131) % len(_PORTS)
        for offset in range(200):
            candidate = _PORTS[(first + offset * 17) % len(_PORTS)]
            with socket.socket() as probe:
                try:
                    probe.bind(("", candidate))
                except OSError:
                    continue
            return candidate
        raise LaunchError(
            "no free port on the first node",
            where=self.nodes[0],
            remedy="exclude the node: cluster.slurm.exclude=[...]",
        )


def _node_address(node: str) -> str | None:
    """Return the address at which SLURM itself reaches a node; None if SLURM cannot be asked."""
    try:
        words = call("scontrol", "show", "node", "-o", node).split()
    except LaunchError:
        return None
    return next((word.partition("=")[2] for word in words if word.startswith("NodeAddr=")), None)
