"""The checks of a job on the login node before it is queued; all problems are reported at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from distllm.cluster.after import check_after
from distllm.cluster.control import Control
from distllm.cluster.duration import check_time
from distllm.cluster.limits import (
    check_addresses,
    check_array,
    check_container,
    check_limits,
    check_options,
    check_writable,
)
from distllm.cluster.places import check_room, check_secrets, check_shared
from distllm.cluster.preparations import SUFFIX
from distllm.cluster.render import prepare_options, train_options
from distllm.cluster.slurm import node_groups, queued_jobs, unusable, would_start
from distllm.commands.settle import dataset_facts
from distllm.config.checks_prepare import check_prepare
from distllm.config.compose import composition_of
from distllm.config.memory_limit import read_memory_limit
from distllm.config.problems import Problems
from distllm.config.resolve import Resolved, World, resolve
from distllm.config.schema import Config
from distllm.data.manifest import Manifest
from distllm.data.mirror import dataset_directory
from distllm.errors import ConfigError, ConfigProblems, DistllmError, LaunchError
from distllm.fsio import free_bytes
from distllm.units import count_of, format_bytes, format_count


@dataclass(frozen=True)
class Checked:
    """A run that may be submitted.

    Attributes:
        config: its configuration.
        run_dir: its directory.
        words: overrides of the ranks' command line.
        notes: lines to show to the user.
    """

    config: Config
    run_dir: Path
    words: list[str]
    notes: list[str] = field(default_factory=list)


def settle_submission(
    overrides: Sequence[str], config_dir: Path | None, *, after: str | None = None, ask: bool = True
) -> Checked:
    """Check a training run for the queue.

    Args:
        overrides: of the configuration.
        config_dir: a user's directory of groups.
        after: a job that the run waits for, and that may make its dataset.
        ask: whether to ask SLURM for its limits and whether it would accept the job.

    Raises:
        ConfigProblems: all problems of the configuration, the dataset, the limits of the cluster and the
            run directory.
    """
    problems = Problems()
    return settle_run(overrides, config_dir, problems, under_slurm=True, after=after, ask=ask)


def settle_run(
    overrides: Sequence[str],
    config_dir: Path | None,
    problems: Problems,
    *,
    under_slurm: bool = False,
    fewest: int | None = None,
    after: str | None = None,
    ask: bool = True,
) -> Checked:
    """Check a training run on several machines.

    Args:
        overrides: of the configuration.
        config_dir: a user's directory of groups.
        problems: problems found so far; they are raised together with those found here.
        under_slurm: whether SLURM will run it.
        fewest: the smallest number of machines with which it must be able to continue.
        after: see `settle_submission`.
        ask: see `settle_submission`.

    Raises:
        ConfigProblems: all problems.
    """
    words = list(overrides)
    composition = composition_of(words, config_dir=config_dir, problems=problems)
    config = composition.config
    run_dir = Path(config.runs_dir) / config.name
    notes: list[str] = []
    if under_slurm:
        if ask:
            notes += check_cluster(config, train_options(config, Path(os.devnull)), problems)
        _check_not_queued(run_dir, problems)
        check_shared(config, run_dir, problems)
        check_secrets(config, problems)
    else:
        check_addresses(config, problems)
    check_writable(run_dir, problems)
    awaited = after is not None and not _is_prepared(config)
    resolved = _resolved(config, problems, awaited=awaited)
    if resolved is not None and awaited:
        notes.append(f"{config.data.out} does not exist yet; it is checked when job {after} has made it")
    elif resolved is not None:
        _check_dataset(resolved, problems)
    if resolved is not None:
        if config.cluster.device == "cuda":  # how much main memory the nodes have is not known here
            from distllm.plan.admission import check_memory

            check_memory(resolved, problems)
        check_room(resolved, run_dir, problems)
        _check_fewer(config, fewest or config.cluster.nodes, problems)
        notes += check_time(resolved, run_dir, problems) if under_slurm else []
        notes += [] if awaited else _check_resume(resolved, run_dir, problems)
    problems.raise_if_any()
    assert resolved is not None
    if config.checkpoint.resume == "never":
        # There is no checkpoint now; a second start of this job must use those of its first.
        words.append("checkpoint.resume=auto")
        composition = composition_of(words, config_dir=config_dir)
    described = _describe(composition.config, resolved, under_slurm=under_slurm)
    return Checked(composition.config, run_dir, words, [*described, *notes])


def _check_fewer(config: Config, fewest: int, problems: Problems) -> None:
    """Check that the global batch can be divided among every number of machines the run may have."""
    cluster, unit = config.cluster, config.data.seq_len * config.cluster.procs_per_node
    smallest = config.batch.start_tokens or config.train.tokens_per_step
    bad = [nodes for nodes in range(fewest, cluster.nodes) if smallest % (unit * nodes)]
    problems.check(
        not bad,
        f"a step of {smallest} tokens is not a whole number of sequences on "
        f"{', '.join(map(str, bad))} machines of {cluster.procs_per_node} ranks",
        keys=["train.tokens_per_step", "elastic"],
        remedy="raise MIN of elastic, or choose a tokens_per_step that every number of machines divides",
    )


def settle_preparation(
    overrides: Sequence[str], config_dir: Path | None, after: str | None = None
) -> Checked:
    """Check a preparation for the queue, where it may wait for the job ``after``.

    Raises:
        ConfigProblems: all problems of the preparation and of what it asks of the cluster.
    """
    problems = Problems()
    config = composition_of(overrides, config_dir=config_dir, problems=problems).config
    check_prepare(config, problems)
    notes = check_cluster(_one_task(config), prepare_options(config, Path(os.devnull)), problems)
    check_array(config.cluster.nodes, "cluster.nodes", problems)
    if after:
        check_after(after, problems)
    check_secrets(config, problems)
    run_dir = Path(config.runs_dir) / f"{config.name}{SUFFIX}"
    check_shared(config, run_dir, problems)
    check_writable(run_dir, problems)
    if "://" not in config.data.out:
        check_writable(Path(config.data.out).parent, problems)
    problems.raise_if_any()
    return Checked(config, run_dir, list(overrides), notes)


def _one_task(config: Config) -> Config:
    """Return the configuration of one task of a preparation, which needs no GPU."""
    slurm = replace(config.cluster.slurm, gpus=None)
    return replace(
        config, cluster=replace(config.cluster, nodes=1, procs_per_node=1, device="cpu", slurm=slurm)
    )


def check_cluster(config: Config, options: Sequence[str], problems: Problems) -> list[str]:
    """Check what a job asks of the cluster; return SLURM's answer.

    Args:
        config: the configuration.
        options: options of sbatch. SLURM is asked only if no other problem was found, because it reports
            one problem at a time.
        problems: where problems are added.
    """
    check_addresses(config, problems)
    check_container(config, problems)
    check_options(config.cluster.slurm.options, problems)
    before = len(problems)
    try:
        check_limits(config, node_groups(), problems)
    except LaunchError as error:
        problems.pass_on(error, where=error.where or "sinfo", remedy=error.remedy or "ask again later")
    if len(problems) > before or problems.suspects:
        return []
    try:
        return [would_start(options)]
    except LaunchError as error:
        problems.pass_on(error, where="cluster.slurm", remedy=error.remedy or "correct what SLURM names")
        _check_named_nodes(config, problems)
        return []


def _check_named_nodes(config: Config, problems: Problems) -> None:
    """Report required nodes that SLURM does not use now; SLURM's own error does not name them."""
    try:
        away = unusable(config.cluster.slurm.nodelist)
    except LaunchError:
        return
    for node, state in away.items():
        problems.add(
            f"node {node} is {state}",
            where="cluster.slurm.nodelist",
            remedy=f"leave it out, or wait; the reason: scontrol show node {node}",
        )


def _is_prepared(config: Config) -> bool:
    return "://" in config.data.out or Path(config.data.out).exists()


def _resolved(config: Config, problems: Problems, *, awaited: bool = False) -> Resolved | None:
    """Resolve the configuration for the ranks of the job, not for this machine; add the problems found.

    A dataset that is ``awaited`` need not exist yet.
    """
    found = Problems()
    found.suspects |= problems.suspects
    dataset = dataset_facts(config, found, needed=not awaited)
    try:
        return resolve(
            config,
            world=World.from_config(config),
            dataset=dataset,
            memory_limit=read_memory_limit(Path(config.runs_dir) / config.name),
            problems=found,
            starts_here=False,
        )
    except ConfigProblems as error:
        problems.found += error.problems
        return None


def _check_dataset(resolved: Resolved, problems: Problems) -> None:
    """Check the mixture, and that the tokenizer of the dataset is the one its shards were made with."""
    from distllm.data.mixture import check_mixture
    from distllm.data.tokenizer import Tokenizer

    directory = dataset_directory(resolved.config.data)
    manifest = Manifest.load(directory)
    try:
        check_mixture(resolved, manifest, problems)
        fingerprint = Tokenizer.load(directory).fingerprint
    except DistllmError as error:
        problems.pass_on(
            error, where=error.where or str(directory), remedy=error.remedy or "prepare it again"
        )
        return
    problems.check(
        fingerprint == manifest.tokenizer_fingerprint,
        f"the tokenizer in {directory} is not the one that its shards were made with",
        keys=["data.out"],
        remedy="restore it, or prepare the dataset again",
    )


def _check_resume(resolved: Resolved, run_dir: Path, problems: Problems) -> list[str]:
    """Check that the run can resume from the newest checkpoint in its directory, if there is one."""
    from distllm.checkpoint.format import list_checkpoints, newest_state

    config, checkpoints = resolved.config, list_checkpoints(run_dir / "checkpoints")
    if not checkpoints:
        problems.check(
            config.checkpoint.resume != "must",
            f"there is no checkpoint in {run_dir} to resume from",
            keys=["checkpoint.resume"],
            remedy="checkpoint.resume=auto starts from the beginning; or check name and runs_dir",
        )
        return []
    newest = checkpoints[0]
    problems.check(
        config.checkpoint.resume != "never",
        f"the run directory holds a checkpoint: {newest.name}",
        keys=["checkpoint.resume", "name"],
        remedy="choose another name=..., or checkpoint.resume=auto to resume from it",
    )
    from distllm.train.resume import check_configuration

    found = newest_state(run_dir / "checkpoints")
    if found is None:
        problems.add(
            f"every checkpoint in {run_dir} is damaged",
            where=f"{run_dir}/checkpoints",
            remedy="restore one from a copy (distllm checkpoint verify shows what is damaged), or choose "
            "another name=...",
        )
        return []
    newest, state = found
    try:
        facts = state["facts"]
        notes = check_configuration(facts["config"], config, run_dir, allow_schedule=False)
        if not Manifest.load(dataset_directory(config.data)).follows(facts["dataset"]):
            raise ConfigError(
                "the dataset has changed since the checkpoint", where=config.data.out, remedy="restore it"
            )
    except ConfigError as error:
        problems.pass_on(error, where=str(newest), remedy=error.remedy or "choose another name=...")
        return []
    except KeyError as error:
        problems.add(f"the checkpoint lacks {error}", where=str(newest), remedy="choose another name=...")
        return []
    return [f"resumes from {newest}", *notes]


def _check_not_queued(run_dir: Path, problems: Problems) -> None:
    """Refuse a run that is already in the queue: two jobs cannot share one directory."""
    from distllm.cluster.jobs import jobs_of

    jobs = jobs_of(run_dir)
    if not jobs or Control(run_dir).asked("cancel") is not None:
        return
    live = [queued for queued in queued_jobs(jobs) if queued.state != "COMPLETING"]
    problems.check(
        not live or os.environ.get("SLURM_JOB_ID") in jobs,
        f"job {live[0].job} of this run directory is already {live[0].state.lower()}" if live else "",
        keys=["name"],
        remedy=f"distllm stop run={run_dir}, distllm cancel run={run_dir}, or choose another name=...",
    )


def _describe(config: Config, resolved: Resolved, *, under_slurm: bool) -> list[str]:
    slurm = config.cluster.slurm
    shape = (
        f"{count_of(config.cluster.nodes, 'node')} x {count_of(config.cluster.procs_per_node, 'rank')}, "
        f"{format_count(resolved.shape.num_params)} parameters, {count_of(resolved.max_steps, 'step')} of "
        f"{config.train.tokens_per_step} tokens (micro-batch {resolved.micro_batch_size} x "
        f"{resolved.grad_accum_steps} on each rank)"
    )
    queue = (
        f"partition {slurm.partition or 'by default'}, time limit {slurm.time_limit}, saves "
        f"{slurm.warning_seconds} s before it"
    )
    space = f"{_free(config.runs_dir)} free in {config.runs_dir}"
    return [shape, queue, space] if under_slurm else [shape, space]


@lru_cache
def _free(directory: str) -> str:
    """Return the free space of a directory; cached, so that all runs of a sweep show the same."""
    return format_bytes(free_bytes(Path(directory)))
