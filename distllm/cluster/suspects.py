"""On which node a start failed, if the node rather than the program may be to blame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distllm.cluster.diagnose import GPU_FAILED, KILLED, first_error
from distllm.cluster.outcome import rank_codes
from distllm.config.schema_cluster import ClusterConfig


def suspect_of(logs: Path, nodes: Sequence[str], cluster: ClusterConfig) -> str | None:
    """Return the node of the rank that failed first; None if the program is to blame, or nothing is known.

    A failed GPU points to a node; so does a rank that ended without writing its exit code when the ranks of
    all other nodes wrote theirs. An error that Python raised does not.

    Args:
        logs: directory of the start, with a log and an exit code of each rank.
        nodes: of the job, in SLURM's order: each runs the next ``procs_per_node`` ranks.
        cluster: the configuration.
    """
    if any(option.startswith(("--distribution", "-m")) for option in cluster.slurm.srun_options):
        return None  # ranks are distributed in another order
    ranks = range(len(nodes) * cluster.procs_per_node)
    finding = first_error(logs)
    if finding is not None and finding.cause in (GPU_FAILED, KILLED):
        return nodes[finding.rank // cluster.procs_per_node] if finding.rank in ranks else None
    told = rank_codes(logs / "exits")
    silent = {nodes[rank // cluster.procs_per_node] for rank in ranks if rank not in told}
    return silent.pop() if told and len(silent) == 1 else None
