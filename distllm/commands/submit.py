"""`distllm submit`: check a run on the login node, keep a copy of its code and queue it with SLURM."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from distllm.commands.arguments import parse_config_arguments, parse_options, split_options
from distllm.commands.submit_options import Options, dependency
from distllm.errors import ConfigError
from distllm.redact import redact_text

if TYPE_CHECKING:
    from distllm.cluster.render import Array
    from distllm.cluster.snapshot import Submission
    from distllm.commands.submit_checks import Checked

_KINDS = ("train", "prepare")
_HELP = (
    "Queue a training run, every run of a sweep (-m), or a preparation (distllm submit prepare ...) with "
    "SLURM. Besides the configuration: dry_run=true prints the script; chain=N queues N jobs, each of which "
    "resumes where the previous one ended (by=dependency|array|singleton); after=JOB waits for another job "
    "to succeed"
)


def run(words: Sequence[str]) -> int:
    """Submit what the command line asks for and print the numbers of the jobs."""
    mine, rest = split_options(Options, words)
    kind = rest.pop(0) if rest and rest[0] in _KINDS else "train"
    options = parse_options("submit", Options, mine)
    arguments = parse_config_arguments("submit", _HELP, rest)
    if arguments.show:
        from distllm.commands.train import show_configuration

        show_configuration(arguments.overrides, arguments.config_dir)
        return 0
    command = redact_text(shlex.join(["distllm", "submit", *words]))
    if kind == "prepare":
        from distllm.commands.submit_prepare import submit_preparation

        if arguments.multirun or options.by != "dependency":
            raise ConfigError(
                "a preparation is already an array of tasks that share its work",
                where="-m" if arguments.multirun else f"by={options.by}",
                remedy="leave it out; submit several datasets one by one",
            )
        return submit_preparation(arguments.overrides, arguments.config_dir, options, command)
    runs = [arguments.overrides]
    if arguments.multirun:
        from distllm.commands.train import sweep

        runs = list(sweep(arguments.overrides, arguments.config_dir))
    return _train(runs, arguments.config_dir, options, command)


def _train(runs: list[list[str]], config_dir: Path | None, options: Options, command: str) -> int:
    from distllm.cluster.render import train_script
    from distllm.config.yaml import to_yaml

    checked = _settled(runs, config_dir, options)
    _print_notes(checked)
    if options.dry_run:
        first = checked[0]
        place = first.run_dir.absolute() / "slurm" / "submissions" / "NNN"
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


def _print_notes(checked: Sequence[Checked]) -> None:
    """Print the notes of each run; notes that all runs share are printed once."""
    if len(checked) > 1:
        print(f"{len(checked)} runs, {checked[0].config.name} to {checked[-1].config.name}")
    common = [line for line in checked[0].notes if all(line in found.notes for found in checked[1:])]
    for line in common:
        print(line if len(checked) > 1 else f"{checked[0].config.name}: {line}")
    for found in checked:
        for line in found.notes:
            if line not in common:
                print(f"{found.config.name}: {line}")


def _ranks_line(found: Checked, place: Path) -> str:
    """Return the command with which a job would start its ranks, in the container if there is one."""
    from distllm.cluster.snapshot import Submission
    from distllm.cluster.srun import ranks_command

    made = Submission(place, tuple(found.words), place / "code", Path.cwd())
    words = ranks_command(made, found.config, place.parents[1] / "starts" / "NNN")
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
        jobs.append(submit(str(first.script), dependency(jobs, options)))
        print(f"job {jobs[-1]}: {first.script}" + (f" ({array})" if array else ""))
    for index, one in enumerate(kept):
        own = range(options.chain) if options.by == "array" else (index,)
        note_jobs(one.run_dir, [f"{job}_{task}" for job in jobs for task in own] if array else jobs)
    print(f"follow: distllm logs -f run={first.run_dir}")
    return 0


def _array_of(runs: Sequence[str], options: Options) -> Array | None:
    """Return the job array of a sweep or of a chain; None if the submission is a single job."""
    from distllm.cluster.render import Array

    if options.by == "array" and options.chain > 1:
        return Array(options.chain, at_once=1)
    if len(runs) == 1:
        return None
    return Array(len(runs), name=runs[0].partition("=")[0])  # names of a sweep are NAME.KEY=VALUE,...


def _settled(runs: list[list[str]], config_dir: Path | None, options: Options) -> list[Checked]:
    """Check every run, and that all of them can be tasks of one job.

    Raises:
        ConfigProblems: all problems of all runs, each one once.
    """
    from distllm.cluster.after import check_after
    from distllm.cluster.limits import check_array
    from distllm.commands.submit_checks import settle_submission
    from distllm.config.problems import Problems
    from distllm.errors import ConfigProblems

    problems, checked = Problems(), []
    problems.check(
        options.by != "array" or len(runs) == 1,
        "the runs of a sweep are already a job array, and arrays cannot be nested",
        keys=["by", "-m"],
        remedy="by=dependency, or submit the runs one by one",
    )
    tasks = max(len(runs), options.chain if options.by == "array" else 1)
    if tasks > 1:
        check_array(tasks, "-m" if len(runs) > 1 else "chain", problems)
    if options.after:
        check_after(options.after, problems)
    for number, words in enumerate(runs):
        try:
            # all runs of a sweep ask the same of the cluster (checked below), so SLURM is asked once
            checked.append(settle_submission(words, config_dir, after=options.after, ask=number == 0))
        except ConfigProblems as error:
            known = {(one.cause, one.where) for one in problems.found}
            problems.found += [one for one in error.problems if (one.cause, one.where) not in known]
    problems.check(
        len({repr(one.config.cluster) for one in checked}) <= 1,
        "the runs of a sweep share one job script, but these differ in what they ask of the cluster",
        keys=["cluster"],
        remedy="leave cluster.* out of the sweep; submit runs with other cluster settings separately",
    )
    problems.raise_if_any()
    return checked
