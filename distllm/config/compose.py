"""Hydra composes, dataclasses validate: from overrides to a Config, with every problem at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distllm.config.overrides import Groups, accepted_overrides, split_override, strip_launcher_arguments
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.validate import build, flatten, keys
from distllm.config.yaml import from_yaml
from distllm.errors import ConfigError

PACKAGE_CONF = Path(__file__).resolve().parent.parent / "conf"
ROOT_CONFIG = "config"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value came from: ``schema``, ``file`` or ``override``, and which."""

    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Composition:
    """A typed configuration and what it was composed from."""

    config: Config
    overrides: tuple[str, ...]
    directories: tuple[Path, ...]


def compose(
    overrides: Sequence[str], *, config_dir: Path | None = None, problems: Problems | None = None
) -> Config:
    """Compose and validate a configuration; see `composition_of`."""
    return composition_of(overrides, config_dir=config_dir, problems=problems).config


def composition_of(
    overrides: Sequence[str], *, config_dir: Path | None = None, problems: Problems | None = None
) -> Composition:
    """Compose and validate a configuration.

    Args:
        overrides: Hydra overrides; arguments that launchers append are ignored.
        config_dir: a user's directory of configuration groups, searched beside the built-in one.
        problems: where to note problems for the caller to raise together with its own. The result
            is then good only if there are none.

    Raises:
        ConfigProblems: every problem found, unless ``problems`` is given.
    """
    found = Problems() if problems is None else problems
    directories = config_directories(config_dir)
    arguments = strip_launcher_arguments(overrides)
    accepted = accepted_overrides(arguments, Groups.scan(directories), found)
    config = build(Config, _hydra(accepted, directories, found), found)
    if problems is None:
        found.raise_if_any()
    return Composition(config, tuple(accepted), tuple(directories))


def sources_of(composition: Composition) -> dict[str, Source]:
    """Return the last file or override that set each key, or the schema.

    It composes once more, which errors of a configuration need not wait for.
    """
    sources = {key: Source("schema", "default of the schema") for key in keys(Config)}
    for name, values in _layers(composition.overrides, composition.directories):
        for key in flatten(values):
            if key in sources:
                sources[key] = Source("file", name)
    for text in composition.overrides:
        _, key, _ = split_override(text)
        if key in sources:
            sources[key] = Source("override", text)
    return sources


def config_directories(config_dir: Path | None) -> list[Path]:
    """Return the directories searched for groups, a user's before the built-in one.

    Raises:
        ConfigError: ``config_dir`` is no directory.
    """
    if config_dir is None:
        return [PACKAGE_CONF]
    if not config_dir.is_dir():
        raise ConfigError(
            f"{config_dir} is not a directory",
            where="--config-dir",
            remedy="give a directory that holds groups, such as DIR/experiment/mine.yaml",
        )
    return [config_dir.absolute(), PACKAGE_CONF]


def _hydra(overrides: list[str], directories: list[Path], problems: Problems) -> dict[str, Any]:
    """Run Hydra's composition; its own errors become problems and nothing is composed."""
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    with _hydra_initialised(directories) as search_path:
        try:
            composed = hydra_compose(ROOT_CONFIG, overrides=[*search_path, *map(_forced, overrides)])
            raw = OmegaConf.to_container(_with_defaults(composed), resolve=True)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            problems.add(
                " ".join(str(error).split()),
                where="configuration",
                remedy="quote values that hold spaces or punctuation, as in 'eval.prompt=\"a, b\"'",
            )
            return {}
    assert isinstance(raw, dict)
    return {str(key): value for key, value in raw.items()}


@contextmanager
def _hydra_initialised(directories: Sequence[Path]) -> Iterator[list[str]]:
    """Initialise Hydra on the built-in directory; yield the overrides that add the others."""
    from hydra import initialize_config_dir

    with initialize_config_dir(str(PACKAGE_CONF), version_base="1.3"):
        extra = [f"file://{directory}" for directory in directories if directory != PACKAGE_CONF]
        yield [f"hydra.searchpath=[{','.join(extra)}]"] if extra else []


def _forced(override: str) -> str:
    """Let a plain ``key=value`` set a key that no file mentions; the schema has approved the key."""
    prefix, key, _ = split_override(override)
    return f"++{override}" if not prefix and key in keys(Config) else override


def _with_defaults(composed: Any) -> Any:
    """Lay the composed values over the schema's defaults if an interpolation may refer to those.

    Hydra composes only what files and overrides say: merging the schema into every step of the
    composition would double the time to the first error message.
    """
    from omegaconf import OmegaConf

    if "${" not in str(composed):
        return composed
    return OmegaConf.merge(OmegaConf.create(asdict(Config())), composed)


def _layers(overrides: Sequence[str], directories: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the configuration files in the order in which Hydra merged them, with their values."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    with _hydra_initialised(directories) as search_path:
        loader = GlobalHydra.instance().config_loader()
        asked = [*search_path, *map(_forced, overrides)]
        defaults = loader.compute_defaults_list(ROOT_CONFIG, asked, RunMode.RUN).defaults
    for entry in defaults:
        path = next((p for d in directories if (p := d / f"{entry.config_path}.yaml").is_file()), None)
        if path is None:
            continue
        values: Mapping[str, Any] = from_yaml(path)
        for part in reversed((entry.package or "").split(".") if entry.package else []):
            values = {part: values}
        group, _, choice = str(entry.config_path).rpartition("/")
        yield f"conf/{entry.config_path}.yaml" + (f" ({group}={choice})" if group else ""), values
