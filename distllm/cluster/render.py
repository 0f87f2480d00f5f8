"""From a configuration to an ``sbatch`` script: the templates of ``slurm/``, filled in and quoted."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from distllm.cluster.after import PREPARATION
from distllm.cluster.limits import gpus_per_node
from distllm.cluster.slurm import parse_time
from distllm.cluster.snapshot import python_of
from distllm.config.schema import Config

_SETTINGS = "# settings\n"
_DIRECTIVE = "#SBATCH "


@dataclass(frozen=True, slots=True)
class Array:
    """A job of many tasks, of which so many run at once: as many as the configuration says by default.

    ``name`` is what they have in common, where they are runs of different names.
    """

    tasks: int
    at_once: int | None = None
    name: str | None = None

    def __str__(self) -> str:
        return f"array of {self.tasks}"


def template(name: str) -> str:
    """Return the text of ``slurm/NAME.sbatch``."""
    return (files("distllm") / "slurm" / f"{name}.sbatch").read_text(encoding="utf-8")


def render(
    name: str, options: Sequence[str], settings: Sequence[str], arguments: Sequence[str], made_by: str
) -> str:
    """Fill a template in.

    Args:
        name: of the template.
        options: of sbatch, as ``--key=value``; they take the place of the template's own.
        settings: shell lines that run first.
        arguments: what the script is started with; they take the place of its own.
        made_by: the command line that made it, for the reader.
    """
    shebang, *rest = template(name).splitlines(keepends=True)
    code = [line for line in rest if not line.startswith("#") or line == _SETTINGS]
    body = "".join(code).replace(
        _SETTINGS, "".join(f"{line}\n" for line in [*settings, f"set -- {shlex.join(arguments)}"])
    )
    directives = "".join(f"{_DIRECTIVE}{option}\n" for option in options)
    return f"{shebang}# Made from slurm/{name}.sbatch by: {' '.join(made_by.split())}\n{directives}{body}"


def train_script(
    config: Config, place: Path, code: Path, paths: Sequence[str], array: Array | None, made_by: str
) -> str:
    """Return the script of a training run, or of an array of them.

    Args:
        config: the configuration, of the first run of an array.
        place: where the submission lies, and the log of the job.
        code: directory of the snapshot of this package.
        paths: the submissions: one for each task, or one for all of them.
        array: what the job is an array of, if it is one.
        made_by: the command line that asked for it.
    """
    log = place / ("job-%A-%a.log" if array else "job-%j.log")
    settings = settings_lines(config, code=code, python=python_of(config), directory=Path.cwd())
    return render("train", train_options(config, log, array), settings, paths, made_by)


def train_options(config: Config, log: Path, array: Array | None = None) -> list[str]:
    """Return sbatch's options for a training run, or for an array."""
    cluster, slurm = config.cluster, config.cluster.slurm
    name = array.name if array and array.name else config.name
    options = common_options(config, f"distllm-{name}", log)
    options += [f"--nodes={cluster.nodes}", f"--ntasks-per-node={cluster.procs_per_node}"]
    if slurm.gpus is not None:
        options.append(f"--gpus-per-node={slurm.gpus}")
    elif gpus_per_node(config):
        options.append(f"--gpus-per-node={gpus_per_node(config)}")
    options += [f"--time={slurm.time_limit}", f"--signal=B:USR2@{slurm.warning_seconds}"]
    options += ["--requeue" if slurm.requeue else "--no-requeue", "--open-mode=append"]
    if array:
        at_once = array.at_once or slurm.max_array_tasks
        options.append(f"--array=0-{array.tasks - 1}{f'%{at_once}' if at_once else ''}")
    return [*options, *slurm.options]


def prepare_options(config: Config, log: Path) -> list[str]:
    """Return sbatch's options for a preparation by ``cluster.nodes`` tasks."""
    slurm = config.cluster.slurm
    at_once = f"%{slurm.max_array_tasks}" if slurm.max_array_tasks else ""
    return [
        *common_options(config, f"{PREPARATION}{config.name}", log),
        "--nodes=1",
        "--ntasks=1",
        f"--array=0-{config.cluster.nodes - 1}{at_once}",
        f"--time={slurm.time_limit}",
        "--requeue",
        *slurm.options,
    ]


def evaluate_options(config: Config, log: Path, step: int) -> list[str]:
    """Return sbatch's options for the evaluation of one checkpoint."""
    limit = parse_time(config.cluster.slurm.time_limit)
    hour = "01:00:00" if limit is None or limit > 3600 else config.cluster.slurm.time_limit
    return [
        *common_options(config, f"distllm-evaluate-{config.name}-{step}", log),
        "--nodes=1",
        "--ntasks=1",
        *(["--gpus-per-node=1"] if gpus_per_node(config) else []),
        f"--time={hour}",
        "--requeue",
        *config.cluster.slurm.options,
    ]


def common_options(config: Config, job_name: str, log: Path) -> list[str]:
    """Return the options that every kind of job has."""
    slurm = config.cluster.slurm
    named = {
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "reservation": slurm.reservation,
        "constraint": slurm.constraint,
        "nodelist": ",".join(slurm.nodelist) or None,
        "exclude": ",".join(slurm.exclude) or None,
        "switches": slurm.switches,
        "mail-user": slurm.mail,
        "mail-type": "BEGIN,FAIL,END" if slurm.mail else None,
        "comment": shlex.quote(slurm.comment) if slurm.comment else None,
        "cpus-per-task": slurm.cpus_per_rank,
        "mem": slurm.memory,
    }
    given = [f"--{key}={value}" for key, value in named.items() if value is not None]
    return [
        f"--job-name={job_name}",
        *given,
        *(["--exclusive"] if slurm.exclusive else []),
        f"--output={log}",
    ]


def settings_lines(
    config: Config, *, code: Path, python: str, directory: Path, more: Mapping[str, str] | None = None
) -> list[str]:
    """Return the shell lines that a job runs first: where it runs, its code, its environment.

    Args:
        config: the configuration.
        code: directory of the snapshot of this package.
        python: the interpreter on the compute nodes.
        directory: the working directory, to which paths of the configuration relate.
        more: further variables.
    """
    # Without the safe path Python would look into the working directory first: a checkout, perhaps.
    env = {
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        **config.cluster.env,
        **(more or {}),
    }
    return [
        'ulimit -n "$(ulimit -Hn)"',
        f"cd {shlex.quote(str(directory))}",
        *config.cluster.setup,
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        *(f"export {name}={shlex.quote(str(value))}" for name, value in env.items()),
        f"DISTLLM_PYTHON={shlex.quote(python)}",
    ]
