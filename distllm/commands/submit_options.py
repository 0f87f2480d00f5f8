"""Options of `distllm submit` besides a configuration, and the job dependencies that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distllm.config.options import option


@dataclass(frozen=True)
class Options:
    """Options of `distllm submit`, besides a configuration."""

    dry_run: bool = option(False, "print the script and submit nothing")
    chain: int = option(1, "jobs in a row, each of which waits for the end of the previous one", minimum=1)
    by: Literal["dependency", "array", "singleton"] = option(
        "dependency",
        "how the jobs of a chain are kept from running together: each waits for the end of the previous one "
        "(afterany); they are an array of which one task runs at a time; or SLURM runs one job of their "
        "name at a time",
    )
    after: str | None = option(None, "job that must have succeeded before this one starts")


def dependency(before: Sequence[str], options: Options) -> list[str]:
    """Return the sbatch option with which a job waits for the jobs ``before`` it, or for another job."""
    from distllm.cluster.after import success_of

    parts = []
    if options.after and (not before or options.by == "singleton"):
        parts.append(success_of(options.after))
    if before and options.by == "dependency":
        parts.append(f"afterany:{before[-1]}")
    if options.by == "singleton" and options.chain > 1:
        parts.append("singleton")
    return [f"--dependency={','.join(parts)}"] if parts else []
