"""`distllm submit`: check everything on the login node, keep a copy of it, and queue it with SLURM."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distllm.commands.arguments import parse_config_arguments, parse_options
from distllm.config.options import option
from distllm.config.overrides import split_override

if TYPE_CHECKING:
    from distllm.cluster.snapshot import Submission

_KINDS = ("train", "prepare")
_HELP = (
    "Queue a training run, every run of a sweep (-m), or a preparation (distllm submit prepare ...) with "
    "SLURM. Besides the configuration: dry_run=true prints the script; chain=N queues N jobs, each of which "
    "goes on where the one before it ended; after=JOB waits for another job to succeed"
)


@dataclass(frozen=True)
class Options:
    """What `distllm submit` takes besides a configuration."""

    dry_run: bool = option(False, "print the script and submit nothing")
    chain: int = option(1, "jobs in a row, each waiting for the end of the one before", minimum=1)
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
    command = shlex.join(["distllm", "submit", *words])
    if kind == "prepare":
        return _prepare(arguments.overrides, arguments.config_dir, options, command)
    runs = [arguments.overrides]
    if arguments.multirun:
        from distllm.commands.train import sweep

        runs = list(sweep(arguments.overrides, arguments.config_dir))
    return _train(runs, arguments.config_dir, options, command)


def _train(runs: list[list[str]], config_dir: Path | None, options: Options, command: str) -> int:
    from distllm.cluster.render import train_script
    from distllm.commands.submit_checks import settle_submission
    from distllm.config.yaml import to_yaml

    checked = [settle_submission(words, config_dir) for words in runs]
    for found in checked:
        for line in found.notes:
            print(f"{found.config.name}: {line}")
    if options.dry_run:
        first = checked[0]
        place = first.run_dir / "slurm" / "submissions" / "NNN"
        print(train_script(first.config, place, place / "code", [str(place)], len(checked), command))
        return 0
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
                facts={"command": command},
            )
        )
    return _queue(kept, options, command)


def _queue(kept: Sequence[Submission], options: Options, command: str) -> int:
    from distllm.cluster.batch import note_job
    from distllm.cluster.control import Control
    from distllm.cluster.render import train_script
    from distllm.cluster.slurm import call, submit
    from distllm.fsio import atomic_write_text

    first, config = kept[0], kept[0].config()
    paths = [str(one.path) for one in kept]
    script = train_script(config, first.path, first.code, paths, len(kept), command)
    for one in kept:
        atomic_write_text(one.script, script)
        Control(one.run_dir).forget_all()
    call("sbatch", "--test-only", str(first.script))
    dependency = f"afterok:{options.after}" if options.after else None
    for number in range(options.chain):
        job = submit(str(first.script), [f"--dependency={dependency}"] if dependency else [])
        dependency = f"afterany:{job}"
        print(f"job {job}: {first.script}" + (f" (array of {len(kept)})" if len(kept) > 1 else ""))
        for index, one in enumerate(kept if number == 0 else ()):
            note_job(one.run_dir, f"{job}_{index}" if len(kept) > 1 else job)
    print(f"follow: distllm status run={first.run_dir}")
    return 0


def _prepare(overrides: list[str], config_dir: Path | None, options: Options, command: str) -> int:
    from distllm.cluster.render import prepare_options, render, settings_lines
    from distllm.cluster.slurm import submit
    from distllm.cluster.snapshot import keep_submission, python_of
    from distllm.commands.submit_checks import settle_preparation
    from distllm.config.yaml import to_yaml
    from distllm.fsio import atomic_write_text

    found = settle_preparation(overrides, config_dir)
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
