"""`distllm train`: start the ranks of a run, or run as one rank if a launcher started this process."""

from __future__ import annotations

import gc
import itertools
import os
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from distllm.commands.arguments import parse_config_arguments
from distllm.commands.settle import precheck, settle
from distllm.config.compose import compose
from distllm.config.overrides import split_override
from distllm.config.resolve import Resolved
from distllm.environment import RankEnvironment, set_rendezvous
from distllm.errors import ConfigError

_ALLOW = "--allow"
_FLAGS = {_ALLOW: "resume a run although keys of its schedule have changed"}
RANK_COMMAND = ("-m", "distllm.launch.train")


def run(words: Sequence[str]) -> int:
    """Train one run, or every run of a sweep (``-m``), and return the exit code."""
    arguments = parse_config_arguments("train", "Train a run, or resume it.", words, _FLAGS)
    set_rendezvous(os.environ)
    if arguments.show:
        show_configuration(arguments.overrides, arguments.config_dir)
        return 0
    if not arguments.multirun:
        return _train(arguments.overrides, arguments.config_dir, arguments.flags)
    codes, runs = [], []
    for combination, _ in combinations(arguments.overrides):
        precheck(combination, arguments.config_dir, RankEnvironment.read(os.environ), need_dataset=True)
    for overrides in sweep(arguments.overrides, arguments.config_dir):
        print(f"sweep: distllm train {' '.join(overrides)}", flush=True)
        codes.append(_train(overrides, arguments.config_dir, arguments.flags))
        config = compose(overrides, config_dir=arguments.config_dir)
        runs.append(str(Path(config.runs_dir) / config.name))
    print(f"sweep: {len(runs)} runs; side by side: distllm report run={','.join(runs)}", flush=True)
    return next((code for code in codes if code), 0)


def show_configuration(overrides: Sequence[str], config_dir: Path | None) -> None:
    """Print the composed configuration as YAML, as Hydra's ``--cfg job`` does."""
    from distllm.config.yaml import to_yaml

    print(to_yaml(asdict(compose(overrides, config_dir=config_dir))), end="")


def sweep(overrides: Sequence[str], config_dir: Path | None = None) -> Iterator[list[str]]:
    """Yield the overrides of every combination of swept values, each with its own run name.

    The name depends on the combination only, so that starting the same sweep again resumes its runs.
    """
    for combination, swept in combinations(overrides):
        tag = ",".join(re.sub(r"[^\w.=+-]", "_", combination[index]) for index in swept)
        names = [value for _, key, value in map(split_override, combination) if key == "name"]
        rest = [override for override in combination if split_override(override)[1] != "name"]
        name = names[-1] if names else compose(rest, config_dir=config_dir).name
        yield [*rest, f"name='{name}.{tag}'"]


def combinations(overrides: Sequence[str]) -> Iterator[tuple[list[str], list[int]]]:
    """Yield every combination of swept values, with the indices of the overrides that are swept.

    Raises:
        ConfigError: a sweep over something other than a list of values, or an override that cannot be read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    choices = []
    try:
        asked = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(
            " ".join(str(error).split()),
            where="command line",
            remedy="write key=value, and quote values that hold spaces or punctuation",
        ) from error
    for parsed in asked:
        key = parsed.get_key_element()
        if parsed.is_sweep_override() and not parsed.is_discrete_sweep():
            raise ConfigError(
                f"cannot sweep over {parsed.input_line!r}",
                where="command line",
                remedy="list the values: key=a,b,c or key=range(1,4)",
            )
        values = parsed.sweep_string_iterator() if parsed.is_sweep_override() else None
        choices.append([parsed.input_line] if values is None else [f"{key}={value}" for value in values])
    swept = [index for index, values in enumerate(choices) if len(values) > 1]
    for combination in itertools.product(*choices):
        yield list(combination), swept


def _train(overrides: Sequence[str], config_dir: Path | None, flags: Collection[str]) -> int:
    launcher = RankEnvironment.read(os.environ)
    if launcher is None or launcher.rank:  # rank 0 shows it
        warnings.filterwarnings("ignore", message="the tokenizer .* loses text")
    composition, resolved = settle(overrides, config_dir, launcher, need_dataset=True)
    if settled := os.environ.get("DISTLLM_SETTLED"):
        from distllm.cluster.snapshot import require_same
        from distllm.config.yaml import to_yaml

        require_same(to_yaml(asdict(composition.config)), Path(settled))
    if launcher is None and resolved.config.cluster.nodes > 1:
        raise ConfigError(
            f"cluster.nodes={resolved.config.cluster.nodes} needs a launcher that starts ranks on every node",
            where="cluster.nodes",
            remedy="srun python launch/train.py ..., torchrun or deepspeed; or cluster.nodes=1",
        )
    if launcher is None:
        return _supervise([*overrides, *_directory(config_dir), *sorted(flags)], resolved)
    os.environ["OMP_NUM_THREADS"] = str(resolved.threads_per_rank)
    gc.enable()
    from distllm.train.rank import train_as_rank

    train_as_rank(composition, resolved, allow_schedule=_ALLOW in flags)
    return 0


def _directory(config_dir: Path | None) -> list[str]:
    return ["--config-dir", str(config_dir)] if config_dir else []


def _supervise(words: Sequence[str], resolved: Resolved) -> int:
    """Start the ranks on this machine and wait for them; return the exit code."""
    from distllm.cluster.hang import Patience
    from distllm.cluster.local import explain_exit
    from distllm.cluster.supervise import Job, supervise

    config = resolved.config
    code = supervise(
        Job(
            command=[*RANK_COMMAND, *words],
            directory=Path(config.runs_dir) / config.name,
            num_ranks=resolved.world.size,
            threads_per_rank=resolved.threads_per_rank,
            max_restarts=config.cluster.max_restarts,
            patience=Patience(config.cluster.hang_seconds, config.cluster.timeout_seconds),
        )
    )
    explain_exit(code)
    return code
