"""The ``srun`` command lines of a job: for its ranks, and for the health check with one task per node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distllm.cluster.fence import VARIABLE as FENCE
from distllm.cluster.outcome import EXITS_VARIABLE
from distllm.cluster.snapshot import SETTLED_VARIABLE, Submission, python_of
from distllm.config.schema import Config

RANK_MODULE = "distllm.launch.train"
HEALTH_MODULE = "distllm.cluster.health"
PYTHON_VARIABLES = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER")
"""Variables that a job script sets for Python (`distllm.cluster.render.settings_lines`)."""


def ranks_command(submission: Submission, config: Config, logs: Path) -> list[str]:
    """Return the command that starts all ranks, each with its own log."""
    cluster = config.cluster
    cores = cluster.slurm.cpus_per_rank
    return [
        "srun",
        f"--nodes={cluster.nodes}",
        f"--ntasks={cluster.nodes * cluster.procs_per_node}",
        f"--ntasks-per-node={cluster.procs_per_node}",
        *([f"--cpus-per-task={cores}"] if cores else []),  # srun does not inherit it from sbatch
        "--kill-on-bad-exit=1",
        "--wait=60",
        "--export=ALL",
        f"--output={logs}/rank-%t.log",
        *cluster.slurm.srun_options,
        *_inside(submission, config),
        "-m",
        RANK_MODULE,
        *submission.words,
    ]


def visible_command(config: Config, path: Path) -> list[str]:
    """Return a command with which every node that sees the file ``path`` prints its own name.

    The command itself needs no file on a shared file system.
    """
    return [
        *_one_a_node(config),
        "--chdir=/",
        "bash",
        "-c",
        '[[ -r $0 ]] && echo "$SLURMD_NODENAME"; true',
        str(path),
    ]


def health_command(submission: Submission, config: Config, head: str, port: int) -> list[str]:
    """Return the command that checks every node once."""
    return [
        *_one_a_node(config),
        "--wait=0",
        "--export=ALL",
        *_inside(submission, config),
        "-m",
        HEALTH_MODULE,
        str(submission.config_file),
        str(submission.run_dir),
        head,
        str(port),
    ]


def _one_a_node(config: Config) -> list[str]:
    """Return the start of a command that runs one task on each node; a failing task does not end others."""
    nodes = config.cluster.nodes
    sizes = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    return ["srun", *sizes, "--kill-on-bad-exit=0"]


def _inside(submission: Submission, config: Config) -> list[str]:
    """Return the words before a program's arguments: the container, if there is one, and Python."""
    container = config.cluster.container
    if container.kind == "none":
        return [python_of(config)]
    mounts = [*container.mounts, *_needed(submission, config)]
    image = container.image or ""
    if container.kind == "pyxis":
        return [
            f"--container-image={image}",
            f"--container-mounts={','.join(mounts)}",
            f"--container-workdir={submission.directory}",
            "--no-container-mount-home",
            # Pyxis keeps the image's value of a variable that both set, unless the variable is named here.
            f"--container-env={','.join(_own_variables(config))}",
            container.python,
        ]
    bound = [word for mount in mounts for word in ("--bind", mount)]
    gpu = ["--nv"] if config.cluster.device == "cuda" else []
    # The home directory is mounted: without this Python would import packages that a user installed there.
    own = ["--env", "PYTHONNOUSERSITE=1"]
    where = ["--pwd", str(submission.directory)]
    return ["apptainer", "exec", *gpu, *own, *bound, *where, image, container.python]


def _own_variables(config: Config) -> list[str]:
    """Return the names of the variables that ranks must get from the job script."""
    ours = (*PYTHON_VARIABLES, "MASTER_ADDR", "MASTER_PORT", FENCE, EXITS_VARIABLE, SETTLED_VARIABLE)
    return [*ours, *config.cluster.env]


def _needed(submission: Submission, config: Config) -> Sequence[str]:
    """Return the directories that a run needs as mounts, under the same paths inside the container."""
    dataset = config.data.out
    paths = [submission.directory, submission.run_dir, submission.code]
    if "://" not in dataset:
        paths.append(submission.directory / dataset)
    return [f"{path}:{path}" for path in dict.fromkeys(paths)]
