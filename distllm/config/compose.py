"""From overrides to a Config: Hydra composes, dataclasses validate, all problems are reported at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distllm.config.hydra_errors import note_hydra_error
from distllm.config.keys import flatten, holds_keys, is_key, keys, leaves, merged, nested
from distllm.config.overrides import (
    Groups,
    accepted_overrides,
    chosen_beside_experiment,
    split_override,
    strip_launcher_arguments,
)
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.validate import build
from distllm.config.yaml import from_yaml
from distllm.errors import ConfigError

PACKAGE_CONF = Path(__file__).resolve().parent.parent / "conf"
ROOT_CONFIG = "config"
_ABOVE = "distllm_above"
_HYDRA_WORD = re.compile(r"[A-Za-z_][\w-]*|0|[1-9](_?[0-9])*", re.ASCII)


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
        problems: collects problems, for the caller to raise together with its own; the result is valid only
            if there are none.

    Raises:
        ConfigProblems: every problem found, unless ``problems`` is given and Hydra could compose.
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
    """Return for each key the last file or override that set it, or the schema.

    It composes a second time; only commands that need the sources do this.
    """
    tree = asdict(composition.config)
    sources = {leaf.path: Source("schema", "default of the schema") for leaf in leaves(Config, tree)}
    with _hydra_initialised(composition.directories):
        layers = list(_layers(composition.overrides, composition.directories))
    named = chosen_beside_experiment(composition.overrides, Groups.scan(composition.directories))
    for layer in [*layers, *(layer for layer in layers if layer.group in named)]:
        for key in flatten(layer.values):
            if key in sources:
                sources[key] = Source("file", layer.name)
    for text in composition.overrides:
        for key in _keys_set_by(text):
            if key in sources:
                sources[key] = Source("override", text)
    return sources


def config_directories(config_dir: Path | None) -> list[Path]:
    """Return the directories searched for groups, a user's before the built-in one.

    Raises:
        ConfigError: ``config_dir`` is not a directory, or holds a root configuration, which would replace the
            built-in one and everything it chooses.
    """
    if config_dir is None:
        return [PACKAGE_CONF]
    if not config_dir.is_dir():
        raise ConfigError(
            f"{config_dir} is not a directory",
            where="--config-dir",
            remedy="give a directory that holds groups, such as DIR/experiment/mine.yaml",
        )
    if (config_dir / f"{ROOT_CONFIG}.yaml").exists():
        raise ConfigError(
            f"{config_dir / ROOT_CONFIG}.yaml would replace the root of every configuration",
            where="--config-dir",
            remedy=f"move its keys to {config_dir}/experiment/NAME.yaml with the first line "
            "'# @package _global_', and choose experiment=NAME",
        )
    return [config_dir.absolute(), PACKAGE_CONF]


def _hydra(overrides: list[str], directories: list[Path], problems: Problems) -> dict[str, Any]:
    """Run Hydra's composition. An error of Hydra is raised at once, together with the problems found before.

    Without a composed configuration no further checks are possible.
    """
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]  # OmegaConf brings it

    with _hydra_initialised(directories):
        try:
            asked = [*map(forced, overrides), *_above_experiment(overrides, directories)]
            raw = resolved_container(hydra_compose(ROOT_CONFIG, overrides=asked))
        except ConfigError as error:
            problems.found.append(error)
            problems.raise_if_any()
        except YAMLError as error:
            problems.add(
                " ".join(str(error).split()),
                where="configuration",
                remedy="fix the file that the message names",
            )
            problems.raise_if_any()
        except RecursionError as error:
            problems.add(
                f"a file chooses itself, or nests values too deeply: {error}",
                where="configuration",
                remedy="take the circle out of the defaults of the files that were chosen, or nest less",
            )
            problems.raise_if_any()
        except (HydraException, OmegaConfBaseException, TypeError, ValueError) as error:
            note_hydra_error(error, overrides, problems)
            problems.raise_if_any()
    return {str(key): value for key, value in raw.items()}


@contextmanager
def _hydra_initialised(directories: Sequence[Path]) -> Iterator[None]:
    """Initialise Hydra so that it searches ``directories`` in this order.

    Hydra's own ``hydra.searchpath`` only adds directories after the built-in one, and would silently ignore a
    user's file of the same name.
    """
    from hydra import initialize_config_dir
    from hydra._internal.hydra import Hydra
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(PACKAGE_CONF), version_base="1.3"):
        if users := [directory for directory in directories if directory != PACKAGE_CONF]:
            search_path = GlobalHydra.instance().config_loader().get_search_path()
            for directory in reversed(users):
                search_path.prepend("--config-dir", f"file://{directory}", anchor="main")
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2("distllm", search_path)
        yield


def forced(override: str) -> str:
    """Rewrite ``key=value`` so that Hydra accepts a key of the schema that no file mentions.

    Hydra cannot parse some names in a key (``data.sources.20news.weight``), but can in a mapping.
    """
    prefix, key, value = split_override(override)
    if value is None or not (is_key(key, keys(Config)) or holds_keys(key, keys(Config))):
        return override
    words = key.split(".")
    if prefix == "~" or all(map(_HYDRA_WORD.fullmatch, words)):
        return override if prefix else f"++{override}"
    head, *rest = words
    for word in reversed(rest):
        value = f"{{{word}:{value}}}"
    return f"{prefix or '++'}{head}={value}"


def resolved_container(composed: Any) -> dict[Any, Any]:
    """Return a composed tree of OmegaConf as plain values with resolved interpolations.

    The schema's defaults are merged in only if there are interpolations, which may refer to them: merging
    them always would double the time to the first error message.

    Raises:
        ConfigError: an interpolation refers to an unknown key.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationKeyError

    if "${" in str(composed):
        raw = OmegaConf.to_container(composed, resolve=False)
        assert isinstance(raw, dict)
        defaults: dict[str, Any] = {}
        for leaf in leaves(Config, {str(key): value for key, value in raw.items()}):
            defaults = merged(defaults, nested(leaf.path, leaf.default))
        composed = OmegaConf.merge(OmegaConf.create(defaults), composed)
    try:
        container = OmegaConf.to_container(composed, resolve=True)
    except InterpolationKeyError as error:
        named = _quoted(str(error.msg))
        raise ConfigError(
            f"{error.full_key} refers to {named}, which is not a key",
            where=str(error.full_key),
            remedy="write ${GROUP.KEY} with a key of the configuration, "
            "or ${oc.env:NAME} for an environment variable",
        ) from error
    assert isinstance(container, dict)
    return container


def _quoted(message: str) -> str:
    """Return the unknown key that an error message of OmegaConf quotes."""
    return message.split("'")[1]


def _keys_set_by(override: str) -> list[str]:
    """Return the keys that an override sets, including those inside a mapping ``a={b:1}``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    _, key, value = split_override(override)
    if value is None or not holds_keys(key, keys(Config)):
        return [key]
    parsed = OverridesParser.create().parse_override(forced(override))
    return list(flatten(nested(parsed.key_or_group, parsed.value())))


@dataclass(frozen=True, slots=True)
class _Layer:
    """A configuration file as Hydra merges it: its group, its name for people, its values from the root."""

    group: str
    name: str
    values: dict[str, Any]


def _layers(overrides: Sequence[str], directories: Sequence[Path]) -> Iterator[_Layer]:
    """Yield the configuration files in the order in which Hydra, which is initialised, merges them."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    loader = GlobalHydra.instance().config_loader()
    asked = list(map(forced, overrides))
    for entry in loader.compute_defaults_list(ROOT_CONFIG, asked, RunMode.RUN).defaults:
        path = next((p for d in directories if (p := d / f"{entry.config_path}.yaml").is_file()), None)
        if path is None:
            continue
        values = {key: value for key, value in from_yaml(path).items() if key != "defaults"}
        for part in reversed((entry.package or "").split(".") if entry.package else []):
            values = {part: values}
        group, _, choice = str(entry.config_path).rpartition("/")
        name = f"conf/{entry.config_path}.yaml" + (f" ({group}={choice})" if group else "")
        yield _Layer(group, name, values)


def _above_experiment(overrides: Sequence[str], directories: Sequence[Path]) -> list[str]:
    """Return an override that gives groups chosen on the command line precedence over an experiment's keys.

    Hydra merges an experiment last, because it chooses groups; so without this the experiment's
    ``eval.every_steps`` would win over ``eval=none``.
    """
    named = chosen_beside_experiment(overrides, Groups.scan(directories))
    if not named:
        return []
    from hydra.core.config_store import ConfigStore

    above: dict[str, Any] = {}
    for layer in _layers(overrides, directories):
        if layer.group in named:
            above = merged(above, layer.values)
    ConfigStore.instance().store(group=_ABOVE, name="chosen", node=above, package="_global_")
    return [f"+{_ABOVE}=chosen"]
