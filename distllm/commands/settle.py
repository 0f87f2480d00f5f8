"""Turn a command line into a resolved run, without torch; shared by train, explain and inspect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distllm.config.compose import Composition, composition_of
from distllm.config.memory_limit import read_memory_limit
from distllm.config.preview import raise_early
from distllm.config.problems import Problems
from distllm.config.resolve import DatasetFacts, Resolved, World, resolve
from distllm.config.schema import Config
from distllm.data.manifest import Manifest
from distllm.data.mirror import dataset_directory
from distllm.environment import RankEnvironment
from distllm.errors import ConfigError, DataError, TokenizerError


def settle(
    overrides: Sequence[str],
    config_dir: Path | None,
    launcher: RankEnvironment | None,
    *,
    need_dataset: bool,
) -> tuple[Composition, Resolved]:
    """Compose, validate and resolve a training run.

    Raises:
        ConfigProblems: every problem of keys, values, combinations, machine and dataset.
    """
    precheck(overrides, config_dir, launcher, need_dataset=need_dataset)
    problems = Problems()
    composition = composition_of(overrides, config_dir=config_dir, problems=problems)
    return composition, _resolved(composition.config, launcher, problems, need_dataset=need_dataset)


def precheck(
    overrides: Sequence[str],
    config_dir: Path | None,
    launcher: RankEnvironment | None,
    *,
    need_dataset: bool,
) -> None:
    """Raise the problems that can be found without Hydra; more may be found after this.

    Raises:
        ConfigProblems: every problem of keys, values, combinations, machine and dataset.
    """
    raise_early(
        overrides,
        config_dir,
        lambda config, problems: _resolved(config, launcher, problems, need_dataset=need_dataset),
    )


def _resolved(
    config: Config, launcher: RankEnvironment | None, problems: Problems, *, need_dataset: bool
) -> Resolved:
    dataset = dataset_facts(config, problems, needed=need_dataset)
    world = None
    if launcher is not None:
        world = World.from_launcher(launcher.world_size, launcher.local_world_size, config)
    if need_dataset and dataset is not None and config.model.init_from is not None:
        _check_tokenizer(config, config.model.init_from, problems)
    limit = read_memory_limit(Path(config.runs_dir) / config.name)
    resolved = resolve(
        config,
        world=world,
        dataset=dataset,
        memory_limit=limit,
        problems=problems,
        starts_here=need_dataset,  # without need_dataset, the run is only explained on this machine
    )
    if need_dataset:
        from distllm.plan.admission import check_memory  # imported late: other errors appear sooner

        check_memory(resolved, problems)
        problems.raise_if_any()
    if dataset is not None:
        from distllm.data.mixture import check_mixture  # imported late: it needs numpy

        check_mixture(resolved, Manifest.load(dataset_directory(config.data)), problems)
        problems.raise_if_any()
    return resolved


def _check_tokenizer(config: Config, folder: str, problems: Problems) -> None:
    """Note a dataset whose token ids mean other tokens than those of the initial weights."""
    from distllm.data.tokenizer.fit import misfit

    try:
        found = misfit(dataset_directory(config.data), Path(folder))
    except ConfigError:
        return  # reported when the model is read
    except TokenizerError as error:
        problems.pass_on(error, where=error.where or "model.init_from", remedy=error.remedy or "")
        return
    problems.check(
        found is None,
        f"the dataset's tokenizer does not fit the model in {folder}: {found}",
        keys=["model.init_from", "data.out"],
        remedy=f"prepare the data with tokenizer.path={folder} into another data.out; or, if tokens were "
        "renamed on purpose, put the dataset's tokenizer.json beside the weights",
    )


def dataset_facts(config: Config, problems: Problems, *, needed: bool) -> DatasetFacts | None:
    """Return the sizes of the prepared dataset; None, and a problem if it is needed, if it cannot be read."""
    try:
        manifest = Manifest.load(dataset_directory(config.data))
    except DataError as error:
        if needed:
            problems.pass_on(error, where=f"data.out={config.data.out}", remedy=error.remedy or "prepare it")
        return None
    return DatasetFacts(
        vocab_size=manifest.vocab_size,
        train_tokens=manifest.splits["train"].tokens,
        valid_tokens=manifest.splits["valid"].tokens,
        digest=manifest.digest,
    )
