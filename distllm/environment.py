"""How launchers tell a process which rank it is: torchrun, deepspeed, srun or bare variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distllm.errors import LaunchError

_TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")


@dataclass(frozen=True, slots=True)
class RankEnvironment:
    """This process among the ranks of a run."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    origin: str

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> RankEnvironment | None:
        """Read the variables a launcher has set; None outside any launcher.

        ``RANK`` and ``WORLD_SIZE`` win over SLURM's variables. A local rank that is not given is
        the rank itself on one machine.

        Raises:
            LaunchError: the variables are no numbers, or contradict each other.
        """
        for names in (_TORCH, _SLURM):
            if names[0] in environment and names[1] in environment:
                return cls._parse(environment, names)
        return None

    @classmethod
    def _parse(cls, environment: Mapping[str, str], names: tuple[str, ...]) -> RankEnvironment:
        rank_name, size_name, local_name, local_size_name = names
        try:
            rank, size = int(environment[rank_name]), int(environment[size_name])
            local_rank = int(environment.get(local_name, rank))
            local_size = int(environment.get(local_size_name, size))
        except ValueError as error:
            raise LaunchError(
                f"a launcher variable is not a number: {error}",
                where=", ".join(f"{name}={environment.get(name)!r}" for name in names),
                remedy="start through distllm train, torchrun, deepspeed or srun, or unset these variables",
            ) from error
        if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
            raise LaunchError(
                f"rank {rank} of {size}, local rank {local_rank} of {local_size}: impossible",
                where=", ".join(f"{name}={environment.get(name)!r}" for name in names),
                remedy="ranks count from 0 to WORLD_SIZE - 1; unset stale variables of another launcher",
            )
        return cls(rank, size, local_rank, local_size, f"{size_name} of the launcher")
