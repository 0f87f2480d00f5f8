"""`distllm submit`: check everything on the login node, keep a copy of it, and queue it with SLURM."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distllm.commands.arguments import parse_config_arguments, parse_options
from distllm.config.options import option
from distllm.config.overrides import split_override
from distllm.redact import redact_text

if TYPE_CHECKING:
    from distllm.cluster.render import Array
    from distllm.cluster.snapshot import Submission
    from distllm.commands.submit_checks import Checked

_KINDS = ("train", "prepare")
_HELP = (
    "Queue a training run, every run of a sweep (-m), or a preparation (distllm submit prepare ...) with "
    "SLURM. Besides the configuration: dry_run=true prints the script; chain=N queues N jobs, each of which "
    "goes on where the one before it ended (by=dependency|array|singleton); after=JOB waits for another job "
    "to succeed"
)


@dataclass(frozen=True)
class Options:
    """What `distllm submit` takes besides a configuration."""

    dry_run: bool = option(False, "print the script and submit nothing")
    chain: int = option(1, "jobs in a row, each waiting for the end of the one before", minimum=1)
    by: Literal["dependency", "array", "singleton"] = option(
        "dependency",
        "what keeps the jobs of a chain apart: each waits for the end of the one before (afterany); they "
        "are an array of which one task runs at a time; or SLURM runs one job of their name at a time",
    )
    after: str | None = option(None, "job that must have succeeded before this one begins")


def run(words: Sequence[str]) -> int:
    """Submit what the command line asks for and print the numbers of the jobs."""
    own = set(Options.__dataclass_fields__)
    mine = [word for word in words if split_override(word)[1] in own and split_override(word)[2] is not None]
    rest = [word for word in words if word not in mine]
    kind = rest.pop(0) if rest and rest[0] in _KINDS else "train"
    options = parse_options("submit", Options, mine)
    arguments = parse_config_arguments("submit", _HELP, rest)
    if arguments.show:
        from distllm.commands.train import show_configuration

        show_configuration(arguments.overrides, arguments.config_dir)
        return 0
    command = redact_text(shlex.join(["distllm", "submit", *words]))
    if kind == "prepare":
        return _prepare(arguments.overrides, arguments.config_dir, options, command)
    runs = [arguments.overrides]
    if arguments.multirun:
        from distllm.commands.train import sweep

        runs = list(sweep(arguments.overrides, arguments.config_dir))
    return _train(runs, arguments.config_dir, options, command)


def _train(runs: list[list[str]], config_dir: Path | None, options: Options, command: str) -> int:
    from distllm.cluster.render import train_script
    from distllm.config.yaml import to_yaml

    checked = _settled(runs, config_dir, options)
    for found in checked:
        for line in found.notes:
            print(f"{found.config.name}: {line}")
    if options.dry_run:
        first = checked[0]
        place = first.run_dir / "slurm" / "submissions" / "NNN"
        array = _array_of([found.config.name for found in checked], options)
        print(train_script(first.config, place, place / "code", [str(place)], array, command))
        print(f"# It checks the nodes, and starts the ranks with:\n# {_ranks_line(first, place)}")
        return 0
    from distllm.cluster.image import image_facts
    from distllm.cluster.snapshot import keep_submission

    kept: list[Submission] = []
    for found in checked:
        code = kept[0].code if kept else None
        kept.append(
            keep_submission(
                found.run_dir,
                found.words,
                to_yaml(asdict(found.config)),
                config_dir,
                code=code,
                facts={"command": command, **image_facts(found.config)},
            )
        )
    return _queue(kept, options, command)


def _ranks_line(found: Checked, place: Path) -> str:
    """Return the command by which a job would start its ranks, in the container if there is one."""
    from distllm.cluster.snapshot import Submission
    from distllm.cluster.srun import ranks_command

    made = Submission(place, tuple(found.words), place / "code", Path.cwd())
    words = ranks_command(made, found.config, found.run_dir / "slurm" / "starts" / "NNN")
    return redact_text(shlex.join(words))


def _queue(kept: Sequence[Submission], options: Options, command: str) -> int:
    from distllm.cluster.control import Control
    from distllm.cluster.jobs import note_jobs
    from distllm.cluster.render import train_script
    from distllm.cluster.slurm import submit
    from distllm.fsio import atomic_write_text

    first, config = kept[0], kept[0].config()
    paths = [str(one.path) for one in kept]
    array = _array_of([one.run_dir.name for one in kept], options)
    script = train_script(config, first.path, first.code, paths, array, command)
    for one in kept:
        atomic_write_text(one.script, script)
        Control(one.run_dir).forget_all()
    jobs: list[str] = []
    for _ in range(1 if options.by == "array" else options.chain):
        jobs.append(submit(str(first.script), _dependency(jobs, options)))
        print(f"job {jobs[-1]}: {first.script}" + (f" ({array})" if array else ""))
    for index, one in enumerate(kept):
        own = range(options.chain) if options.by == "array" else (index,)
        note_jobs(one.run_dir, [f"{job}_{task}" for job in jobs for task in own] if array else jobs)
    print(f"follow: distllm logs -f run={first.run_dir}")
    return 0


def _array_of(runs: Sequence[str], options: Options) -> Array | None:
    """Return the array that the submission is: of the named runs of a sweep, or of the links of a chain."""
    from distllm.cluster.render import Array

    if options.by == "array" and options.chain > 1:
        return Array(options.chain, at_once=1)
    if len(runs) == 1:
        return None
    return Array(len(runs), name=runs[0].partition("=")[0])  # a run of a sweep is called NAME.KEY=VALUE,...


def _dependency(before: Sequence[str], options: Options) -> list[str]:
    """Return the option by which a job waits for those ``before`` it in its chain, or for another job."""
    parts = []
    if options.after and (not before or options.by == "singleton"):
        parts.append(f"afterok:{options.after}")
    if before and options.by == "dependency":
        parts.append(f"afterany:{before[-1]}")
    if options.by == "singleton" and options.chain > 1:
        parts.append("singleton")
    return [f"--dependency={','.join(parts)}"] if parts else []


def _settled(runs: list[list[str]], config_dir: Path | None, options: Options) -> list[Checked]:
    """Check every run, and that all of them can be tasks of one job.

    Raises:
        ConfigProblems: everything that is wrong with any of them, each problem once.
    """
    from distllm.cluster.limits import check_after, check_array
    from distllm.commands.submit_checks import settle_submission
    from distllm.config.problems import Problems
    from distllm.errors import ConfigProblems

    problems, checked = Problems(), []
    problems.check(
        options.by != "array" or len(runs) == 1,
        "the runs of a sweep are an array already, and an array has no array in it",
        keys=["by", "-m"],
        remedy="by=dependency, or submit the runs one by one",
    )
    tasks = max(len(runs), options.chain if options.by == "array" else 1)
    if tasks > 1:
        check_array(tasks, "-m" if len(runs) > 1 else "chain", problems)
    if options.after:
        check_after(options.after, problems)
    for words in runs:
        try:
            checked.append(settle_submission(words, config_dir))
        except ConfigProblems as error:
            known = {(one.cause, one.where) for one in problems.found}
            problems.found += [one for one in error.problems if (one.cause, one.where) not in known]
    problems.check(
        len({repr(one.config.cluster) for one in checked}) <= 1,
        "the runs of a sweep share one job script, and these ask different things of the cluster",
        keys=["cluster"],
        remedy="leave cluster.* out of the sweep; submit runs on other nodes by themselves",
    )
    problems.raise_if_any()
    return checked


def _prepare(overrides: list[str], config_dir: Path | None, options: Options, command: str) -> int:
    from distllm.cluster.render import prepare_options, render, settings_lines
    from distllm.cluster.slurm import submit
    from distllm.cluster.snapshot import keep_submission, python_of
    from distllm.commands.submit_checks import settle_preparation
    from distllm.config.yaml import to_yaml
    from distllm.fsio import atomic_write_text

    found = settle_preparation(overrides, config_dir, options.after)
    for line in found.notes:
        print(f"{found.config.name}: {line}")
    place, code, words = found.run_dir / "slurm" / "submissions" / "NNN", Path("code"), tuple(found.words)
    if not options.dry_run:
        kept = keep_submission(
            found.run_dir, found.words, to_yaml(asdict(found.config)), config_dir, facts={"command": command}
        )
        place, code, words = kept.path, kept.code, kept.words
    settings = settings_lines(found.config, code=code, python=python_of(found.config), directory=Path.cwd())
    script = render(
        "prepare", prepare_options(found.config, place / "job-%A-%a.log"), settings, words, command
    )
    if options.dry_run:
        print(script)
        return 0
    atomic_write_text(place / "job.sbatch", script)
    after = [f"--dependency=afterok:{options.after}"] if options.after else []
    job = submit(str(place / "job.sbatch"), after)
    print(f"job {job}: {place / 'job.sbatch'} (array of {found.config.cluster.nodes})")
    print(f"train when it has succeeded: distllm submit after={job} ...")
    return 0
