"""From a configuration to an ``sbatch`` script: the templates in ``slurm/``, filled in and quoted."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from distllm.cluster.after import PREPARATION
from distllm.cluster.limits import gpus_per_node
from distllm.cluster.slurm import parse_time
from distllm.cluster.snapshot import python_of
from distllm.config.schema import Config

_SETTINGS = "# settings"
_DIRECTIVE = "#SBATCH "
_REASONS = {
    "--signal": "so many seconds before the time limit this script (B:) gets USR2 and asks the ranks to save",
    "--requeue": "after a preemption or a lost node SLURM queues the job again",
    "--no-requeue": "SLURM starts the job once",
    "--open-mode": "a job that returns appends to the same log",
    "--array": "the tasks, at most so many (%) at once",
    "--mem=0": "all memory of a node",
}
"""Comments in the script for options of sbatch whose names do not explain them."""
_AGAIN = "# sbatch accepts this file directly, too; options on its command line override those here.\n"


@dataclass(frozen=True, slots=True)
class Array:
    """A job of many tasks.

    Attributes:
        tasks: number of tasks.
        at_once: how many may run at the same time; None: as the configuration says.
        name: what the names of the runs have in common, for an array of different runs.
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
        options: of sbatch, as ``--key=value``; they replace the template's own.
        settings: shell lines that run first.
        arguments: the script's arguments; they replace those of the command line.
        made_by: the command line that made the script, for the reader.
    """
    shebang, *rest = template(name).splitlines(keepends=True)
    code = [line for line in rest if not line.startswith("#") or line.startswith(_SETTINGS)]
    first = next(index for index, line in enumerate(code) if line.startswith(_SETTINGS))
    lines = [*settings, "# what runs, and what it is given", f"set -- {shlex.join(arguments)}"]
    code[first] = "".join(f"{line}\n" for line in lines)
    head = f"# Made from slurm/{name}.sbatch by: {' '.join(made_by.split())}\n{_AGAIN}"
    return f"{shebang}{head}{''.join(map(_directive, options))}{''.join(code)}"


def _directive(option: str) -> str:
    """Return the line with an option of sbatch, below a comment if the option needs one."""
    reason = _REASONS.get(option if option == "--mem=0" else option.partition("=")[0])
    return f"{f'# {reason}' + chr(10) if reason else ''}{_DIRECTIVE}{option}\n"


def train_script(
    config: Config, place: Path, code: Path, paths: Sequence[str], array: Array | None, made_by: str
) -> str:
    """Return the script of a training run, or of an array of them.

    Args:
        config: the configuration; in an array, that of the first run.
        place: directory of the submission, which also gets the job's log.
        code: directory of the snapshot of this package.
        paths: the submissions: one for each task, or one for all of them.
        array: the tasks of the job, if it is an array.
        made_by: the command line that made the script.
    """
    log = place / ("job-%A-%a.log" if array else "job-%j.log")
    settings = settings_lines(config, code=code, python=python_of(config), directory=Path.cwd())
    return render("train", train_options(config, log, array), settings, paths, made_by)


def train_options(config: Config, log: Path, array: Array | None = None) -> list[str]:
    """Return sbatch's options for a training run, or for an array."""
    cluster, slurm = config.cluster, config.cluster.slurm
    name = array.name if array and array.name else config.name
    options = _common(config, f"distllm-{name}", log, whole_nodes=True)
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
        *_common(config, f"{PREPARATION}{config.name}", log),
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
        *_common(config, f"distllm-evaluate-{config.name}-{step}", log),
        "--nodes=1",
        "--ntasks=1",
        *(["--gpus-per-node=1"] if gpus_per_node(config) else []),
        f"--time={hour}",
        "--requeue",
        *config.cluster.slurm.options,
    ]


def _common(config: Config, job_name: str, log: Path, *, whole_nodes: bool = False) -> list[str]:
    """Return the options that all kinds of jobs share; ``whole_nodes`` adds those that select nodes."""
    slurm = config.cluster.slurm
    together = {
        "nodelist": ",".join(slurm.nodelist) or None,
        "switches": slurm.switches,
    }
    named = {
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "reservation": slurm.reservation,
        "constraint": slurm.constraint,
        **(together if whole_nodes else {}),
        "exclude": ",".join(slurm.exclude) or None,
        "mail-user": slurm.mail,
        "mail-type": "BEGIN,FAIL,END" if slurm.mail else None,
        "comment": shlex.quote(slurm.comment) if slurm.comment else None,
        "cpus-per-task": slurm.cpus_per_rank,
        "mem": slurm.memory if whole_nodes or slurm.memory != "0" else None,
    }
    given = [f"--{key}={value}" for key, value in named.items() if value is not None]
    exclusive = ["--exclusive"] if whole_nodes and slurm.exclusive else []
    return [f"--job-name={job_name}", *given, *exclusive, f"--output={log}"]


def settings_lines(config: Config, *, code: Path, python: str, directory: Path) -> list[str]:
    """Return the shell lines that a job runs first: working directory, code, environment.

    Args:
        config: the configuration.
        code: directory of the snapshot of this package.
        python: the interpreter on the compute nodes.
        directory: the working directory, to which relative paths of the configuration refer.
    """
    setup, env = config.cluster.setup, config.cluster.env
    return [
        "# as many open files as the site allows: data loaders need many",
        'ulimit -n "$(ulimit -Hn)"',
        "# relative paths of the configuration refer to the directory of the submission",
        f"cd {shlex.quote(str(directory))}",
        *(("# cluster.setup", *setup) if setup else ()),
        "# the code as it was at submission, and nothing from the working directory",
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1",
        "# show output at once, and the stack of a crash",
        "export PYTHONUNBUFFERED=1",
        "export PYTHONFAULTHANDLER=1",
        *(("# cluster.env",) if env else ()),
        *(f"export {name}={shlex.quote(str(value))}" for name, value in env.items()),
        f"DISTLLM_PYTHON={shlex.quote(python)}",
    ]
