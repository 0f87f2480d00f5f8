"""The rank that a launcher has given this process, read without torch.

torchrun and the deepspeed launcher set ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``; srun sets
``SLURM_PROCID``, ``SLURM_NTASKS`` and ``SLURM_LOCALID``. If none of them is set, there is no launcher.
Variables that contradict each other are an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from distllm.errors import LaunchError

_SHELLS = ("bash", "sh", "zsh", "interactive")
"""Usual names of jobs that open a shell on a node."""


@dataclass(frozen=True, slots=True)
class RankEnvironment:
    """One rank's place among all ranks: ``rank`` counts over all machines, ``local_rank`` over this one."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @classmethod
    def read(cls, env: Mapping[str, str]) -> RankEnvironment | None:
        """Read this process's place from a launcher's variables; None outside any launcher.

        Raises:
            LaunchError: variables are missing, are not numbers, or contradict each other.
        """
        if "RANK" in env or "WORLD_SIZE" in env:
            place = cls(*_from_torch_variables(env))
        elif "SLURM_PROCID" in env and (_in_step(env) or "MASTER_ADDR" in env):
            # The shell of a batch script has SLURM_PROCID too, but neither a step nor MASTER_ADDR.
            place = cls(*_from_slurm_variables(env))
        else:
            return None
        _check_range(place.rank, "RANK", place.world_size, "WORLD_SIZE")
        _check_range(place.local_rank, "LOCAL_RANK", place.local_world_size, "LOCAL_WORLD_SIZE")
        _check_range(place.local_world_size - 1, "LOCAL_WORLD_SIZE - 1", place.world_size, "WORLD_SIZE")
        if place.world_size > 1:
            _check_rendezvous(env)
        return place


def set_rendezvous(env: MutableMapping[str, str]) -> None:
    """Say in ``env`` where the tasks of an ``srun`` meet, if nothing says so: at the first node of the step.

    All tasks derive the same port, another for each job, start and step, below those that systems give to
    outgoing connections. `distllm submit` does better: it looks for one that is free.
    """
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST")
    if not nodes or "RANK" in env or "SLURM_PROCID" not in env or not _in_step(env):
        return
    names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
    job, restarts, step = (int(text) if (text := env.get(name, "")).isdigit() else 0 for name in names)
    env.setdefault("MASTER_ADDR", _first_host(nodes))
    env.setdefault("MASTER_PORT", str(10_000 + (job * 7 + restarts * 131 + step * 1009) % 20_000))


def _first_host(nodes: str) -> str:
    """Return the first host of SLURM's notation: ``n1`` of ``n[1-3,07],login``."""
    first = re.match(r"(?:[^\[,]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0] if first else nodes)


def _in_step(env: Mapping[str, str]) -> bool:
    """Whether this is a task that ``srun`` started, and not an interactive shell, which is a step too."""
    alone = env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1")) == "1"
    is_shell = "SLURM_PTY_PORT" in env or env.get("SLURM_JOB_NAME") in _SHELLS
    return "SLURM_STEP_ID" in env and not (alone and is_shell)


def _from_torch_variables(env: Mapping[str, str]) -> tuple[int, int, int, int]:
    rank, world_size = _integer(env, "RANK"), _integer(env, "WORLD_SIZE")
    tasks = env.get("SLURM_STEP_NUM_TASKS", "1")
    if "SLURM_STEP_ID" in env and tasks.isdigit() and int(tasks) > world_size:
        raise LaunchError(
            f"WORLD_SIZE={world_size} contradicts the {tasks} tasks of this SLURM step",
            where="environment of the rank",
            remedy="unset RANK and WORLD_SIZE in the job script, so that srun's own variables are used",
        )
    # The deepspeed launcher sets LOCAL_SIZE where torchrun sets LOCAL_WORLD_SIZE.
    local_name = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in env else "LOCAL_SIZE"
    local_world_size = _integer(env, local_name) if local_name in env else world_size
    if "LOCAL_RANK" in env:
        return rank, world_size, _integer(env, "LOCAL_RANK"), local_world_size
    if local_world_size != world_size:
        raise LaunchError(
            f"LOCAL_RANK is not set although {local_name}={local_world_size} of WORLD_SIZE={world_size}",
            where="environment of the rank",
            remedy="start ranks with distllm, torchrun, deepspeed or srun",
        )
    return rank, world_size, rank, local_world_size


def _from_slurm_variables(env: Mapping[str, str]) -> tuple[int, int, int, int]:
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    rank, world_size = _integer(env, "SLURM_PROCID"), _integer(env, tasks)
    local_rank = _integer(env, "SLURM_LOCALID")
    spread = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE")
    local_world_size = world_size
    if spread:
        node = _integer(env, "SLURM_NODEID") if "SLURM_NODEID" in env else 0
        local_world_size = _tasks_of_node(spread, node)
    return rank, world_size, local_rank, local_world_size


def _tasks_of_node(spread: str, node: int) -> int:
    """Return the tasks of ``node`` in SLURM's run-length notation, such as ``4(x2),3``."""
    counts: list[int] = []
    for part in spread.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            break
        counts.extend([int(match.group(1))] * int(match.group(2) or 1))
    if node >= len(counts):
        raise LaunchError(
            f"SLURM_NODEID={node} does not fit SLURM_TASKS_PER_NODE={spread!r}",
            where="environment of the rank",
            remedy="start ranks with srun, which sets both",
        )
    return counts[node]


def _integer(env: Mapping[str, str], name: str) -> int:
    text = env.get(name)
    if text is None or not text.strip().isdigit():
        found = "is not set" if text is None else f"is {text!r}, not a number"
        raise LaunchError(
            f"{name} {found}, but other rank variables are set",
            where="environment of the rank",
            remedy="start ranks with distllm, torchrun, deepspeed or srun, or unset RANK and WORLD_SIZE",
        )
    return int(text)


def _check_range(value: int, name: str, size: int, size_name: str) -> None:
    if not 0 <= value < size:
        raise LaunchError(
            f"{name}={value} contradicts {size_name}={size}",
            where="environment of the rank",
            remedy="start all ranks with one launcher, and unset the variables of an earlier one",
        )


def _check_rendezvous(env: Mapping[str, str]) -> None:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if missing:
        raise LaunchError(
            f"{' and '.join(missing)} not set although there are several ranks",
            where="environment of the rank",
            remedy="export the first node's name as MASTER_ADDR and a free port as MASTER_PORT",
        )
