"""Checks before a job is queued: what SLURM would refuse, or never start. Nothing here raises."""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Sequence
from pathlib import Path

from distllm.cluster.image import is_file
from distllm.cluster.slurm import NodeGroup, max_array_size, parse_memory, parse_time
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.errors import LaunchError, StorageError
from distllm.fsio import ensure_writable
from distllm.registry import did_you_mean
from distllm.units import format_bytes, format_duration

_SIZE = "cluster.nodes and cluster.procs_per_node say how many ranks there are"
_ARRAY = "an array is a sweep (-m), a chain (chain=N by=array) or a preparation"
_KEPT = "leave it out: logs and requests belong in the run directory"
_RETURN = "cluster.slurm.requeue says whether the job is queued again"
_SET_BY_US = {
    **dict.fromkeys(("--nodes", "-N", "--ntasks", "-n", "--ntasks-per-node"), _SIZE),
    **dict.fromkeys(("--array", "-a"), _ARRAY),
    **dict.fromkeys(("--output", "-o", "--open-mode", "--chdir", "-D", "--wrap"), _KEPT),
    **dict.fromkeys(("--requeue", "--no-requeue"), _RETURN),
    **dict.fromkeys(("--time", "-t"), "cluster.slurm.time_limit=12:00:00"),
    **dict.fromkeys(("--dependency", "-d"), "after=JOB"),
    **dict.fromkeys(("--job-name", "-J"), "name=NAME"),
    "--signal": "cluster.slurm.warning_seconds=300",
}
"""Options of sbatch that would break the job script, and what to use instead."""
CLOCK_SECONDS = 60
"""SLURM checks time limits twice a minute: its warning may come this much too early."""
REACH_SECONDS = 60
"""On a network file system a new file, such as the request to save, may be visible this much later."""


def check_limits(config: Config, groups: Sequence[NodeGroup], problems: Problems) -> None:
    """Compare what a job asks for with what the cluster has."""
    slurm = config.cluster.slurm
    limit = time_limit(config, problems)
    names = sorted({group.partition for group in groups})
    default = next((group.partition for group in groups if group.is_default), None)
    partition = slurm.partition or default
    if partition is None or partition not in names:
        problems.add(
            f"there is no partition {slurm.partition!r}"
            if slurm.partition
            else "there is no default partition",
            where="cluster.slurm.partition",
            remedy=did_you_mean(slurm.partition or "", names),
        )
        largest = max(
            (sum(one.nodes for one in groups if one.partition == name) for name in names), default=0
        )
        problems.check(
            config.cluster.nodes <= largest,
            f"cluster.nodes={config.cluster.nodes}, but the largest partition has {largest} nodes",
            keys=["cluster.nodes"],
            remedy=f"cluster.nodes={largest}, or fewer",
        )
        _check_nodes(config, "this cluster", groups, problems)
        return
    kinds = [group for group in groups if group.partition == partition]
    _check_partition(config, partition, kinds, limit, problems)
    _check_nodes(config, f"partition {partition}", kinds, problems)


def check_options(options: Sequence[str], problems: Problems) -> None:
    """Check that ``cluster.slurm.options`` are options, and none that the job script depends on."""
    for option in options:
        name = option.partition("=")[0] if option.startswith("--") else option[:2]
        if not option.startswith("-"):
            problems.add(
                f"{option!r} is not an option of sbatch",
                where="cluster.slurm.options",
                remedy="write options as --NAME=VALUE; heterogeneous jobs are not supported",
            )
        elif name in _SET_BY_US:
            problems.add(
                f"{name} is set by distllm submit",
                where="cluster.slurm.options",
                remedy=_SET_BY_US[name],
            )


def _check_partition(
    config: Config, partition: str, kinds: Sequence[NodeGroup], limit: int | None, problems: Problems
) -> None:
    nodes, available = config.cluster.nodes, sum(group.nodes for group in kinds)
    problems.check(
        all(group.is_up for group in kinds),
        f"partition {partition} is down",
        keys=["cluster.slurm.partition"],
        remedy="choose another, or wait until its administrators bring it up",
    )
    problems.check(
        nodes <= available,
        f"{nodes} nodes requested from partition {partition}, which has {available}",
        keys=["cluster.nodes", "cluster.slurm.partition"],
        remedy=f"cluster.nodes={available}, or another partition",
    )
    longest = min((group.time_limit for group in kinds if group.time_limit is not None), default=None)
    problems.check(
        limit is None or longest is None or limit <= longest,
        f"partition {partition} allows at most {format_duration(longest or 0)}",
        keys=["cluster.slurm.time_limit", "cluster.slurm.partition"],
        remedy=f"cluster.slurm.time_limit={(longest or 0) // 60}: the job is queued again by itself",
    )


def _check_nodes(config: Config, place: str, kinds: Sequence[NodeGroup], problems: Problems) -> None:
    """Check that some kind of node in ``place`` has the GPUs, cores and memory that a node must have."""
    cluster, slurm = config.cluster, config.cluster.slurm
    gpus = gpus_per_node(config)
    most = max((group.gpus for group in kinds), default=0)
    problems.check(
        gpus <= most,
        f"{gpus} GPUs per node requested, the nodes of {place} have {most}",
        keys=["cluster.procs_per_node", "cluster.slurm.gpus"],
        remedy=f"cluster.procs_per_node={most} and more nodes"
        if most
        else "another partition, or device=cpu",
    )
    cpus = cluster.procs_per_node * (slurm.cpus_per_rank or 1)
    most_cpus = max((group.cpus for group in kinds), default=0)
    problems.check(
        cpus <= most_cpus,
        f"{cpus} CPU cores per node requested, the nodes of {place} have {most_cpus}",
        keys=["cluster.procs_per_node", "cluster.slurm.cpus_per_rank"],
        remedy=f"cluster.slurm.cpus_per_rank={max(1, most_cpus // cluster.procs_per_node)}",
    )
    try:
        memory = parse_memory(slurm.memory or "0")
    except ValueError as error:
        problems.add(str(error), where="cluster.slurm.memory", remedy="write it as SLURM does")
        return
    most_memory = max((group.memory for group in kinds), default=0) << 20
    problems.check(
        memory <= most_memory,
        f"{format_bytes(memory)} of memory per node requested, the nodes of {place} have "
        f"{format_bytes(most_memory)}",
        keys=["cluster.slurm.memory"],
        remedy=f"cluster.slurm.memory={most_memory >> 20}M, or 0 for all that a node has",
    )


def check_array(tasks: int, key: str, problems: Problems) -> None:
    """Check that SLURM accepts an array of so many tasks, if its limit is known."""
    try:
        most = max_array_size()
    except LaunchError:
        return  # some sites do not let users run scontrol; then sbatch refuses
    problems.check(
        most is None or tasks <= most,
        f"an array of {tasks} tasks is too large: this cluster allows {most} (MaxArraySize)",
        keys=[key],
        remedy=f"submit it in parts of at most {most}",
    )


def gpus_per_node(config: Config) -> int:
    """Return the GPUs that each node must have."""
    asked = config.cluster.slurm.gpus
    if asked is not None:
        count = asked.rpartition(":")[2]
        return int(count) if count.isdigit() else 0
    return config.cluster.procs_per_node if config.cluster.device == "cuda" else 0


def time_limit(config: Config, problems: Problems) -> int | None:
    """Return the time limit in seconds, None for no limit; one that cannot be used is a problem."""
    slurm = config.cluster.slurm
    try:
        limit = parse_time(slurm.time_limit)
    except ValueError as error:
        problems.add(str(error), where="cluster.slurm.time_limit", remedy="write it as SLURM does")
        return None
    least = slurm.warning_seconds + CLOCK_SECONDS
    problems.check(
        limit is None or limit > least,
        f"a limit of {format_duration(limit or 0)} leaves no time before the warning, which comes "
        f"{slurm.warning_seconds} seconds before it and up to {CLOCK_SECONDS} earlier than asked",
        keys=["cluster.slurm.time_limit", "cluster.slurm.warning_seconds"],
        remedy="raise the limit, or lower cluster.slurm.warning_seconds to what a step and a save need",
    )
    return limit


def check_interval(config: Config, seconds_per_step: float, origin: str, problems: Problems) -> None:
    """Check that one start is long enough to reach a checkpoint.

    Args:
        config: the configuration.
        seconds_per_step: duration of an optimizer step.
        origin: where that number comes from.
        problems: gets the problem, if there is one.
    """
    limit = time_limit(config, Problems())
    if limit is None:
        return
    every = config.checkpoint.every_steps
    usable = limit - config.cluster.slurm.warning_seconds - CLOCK_SECONDS
    needed, left = every * seconds_per_step, format_duration(max(0, usable))
    fits = int(usable / seconds_per_step)
    shorter = f"checkpoint.every_steps={fits}, or " if fits > 0 else ""
    problems.check(
        needed <= usable,
        f"one checkpoint interval takes {format_duration(needed)} "
        f"({every} steps of {seconds_per_step:.3g} s, {origin}), the time limit leaves {left}",
        keys=["cluster.slurm.time_limit", "checkpoint.every_steps"],
        remedy=f"{shorter}a longer limit: otherwise a failure loses a whole start",
    )


def check_warning(
    config: Config, seconds_per_step: float, save_seconds: float, origin: str, problems: Problems
) -> None:
    """Check that there is time to save between SLURM's warning and the limit.

    The ranks have to notice the request, finish the step, and write a checkpoint.

    Args:
        config: the configuration.
        seconds_per_step: duration of an optimizer step.
        save_seconds: duration of writing a checkpoint.
        origin: where the duration of a step comes from.
        problems: gets the problem, if there is one.
    """
    warning, work = config.cluster.slurm.warning_seconds, seconds_per_step + save_seconds
    needed = work + REACH_SECONDS
    problems.check(
        warning == 0 or needed <= warning,
        f"SLURM warns {warning} s before the time limit; a step and a checkpoint take "
        f"{format_duration(work)} ({seconds_per_step:.3g} s a step, {origin}), "
        f"and the ranks may notice the warning {REACH_SECONDS} s late",
        keys=["cluster.slurm.warning_seconds"],
        remedy=f"cluster.slurm.warning_seconds={math.ceil(REACH_SECONDS + 1.5 * work)}",
    )


def check_addresses(config: Config, problems: Problems) -> None:
    """Check that ``cluster.head``, if it is set, resolves to an address."""
    head = config.cluster.head
    if head is None:
        return
    problems.check(
        resolves(head),
        f"{head!r} does not resolve to an address",
        keys=["cluster.head"],
        remedy="give a name or address that every node can reach, or null for the job's first node",
    )


def resolves(host: str) -> bool:
    """Whether this machine finds an address for ``host``."""
    try:
        return bool(socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return False


def check_container(config: Config, problems: Problems) -> None:
    """Check that the image exists, if it is a file."""
    container = config.cluster.container
    if container.kind == "none":
        return
    image = container.image
    problems.check(
        image is not None and (not is_file(image) or Path(image).expanduser().exists()),
        f"{image} does not exist" if image else f"cluster.container.kind={container.kind} needs an image",
        keys=["cluster.container.image"],
        remedy="cluster.container.image=FILE.sif, FILE.sqsh or a registry's address",
    )


def check_writable(directory: Path, problems: Problems) -> None:
    """Check that a directory can be written; directories that the check has created are removed again."""
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        ensure_writable(directory)
    except StorageError as error:
        problems.pass_on(error, where=f"runs_dir/name = {directory}", remedy=error.remedy or "choose another")
    for path in made:
        with contextlib.suppress(OSError):
            path.rmdir()
