"""`distllm plan`: predict memory, time, cost and failures of an experiment on a cluster."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from distllm.commands.arguments import parse_config_arguments
from distllm.config.compose import composition_of
from distllm.config.preview import raise_early
from distllm.config.problems import Problems
from distllm.config.resolve import Resolved, resolve
from distllm.config.schema import Config
from distllm.errors import ConfigError
from distllm.plan.calibration import machine_of_calibration, read_calibration
from distllm.plan.fitted import FITTED
from distllm.plan.profile import machine_of_config, missing_figures
from distllm.plan.report import Plan, describe, make_plan
from distllm.plan.scaling import scaling_table

_WHAT = "Predict what an experiment needs and how fast it is: distllm plan experiment=... cluster=h100"
_JSON, _CALIBRATE, _SCALE = "--json", "--calibrate", "--scale"
_FLAGS = {
    _JSON: "print the plan as JSON",
    _CALIBRATE: "measure this machine's CPUs, for plans with cluster=local",
    _SCALE: "the same model and batch for each device from one node to 16 384 devices",
}


def run(words: Sequence[str]) -> int:
    """Plan one experiment."""
    arguments = parse_config_arguments("plan", _WHAT, words, _FLAGS)
    resolved = _settled(arguments.overrides, arguments.config_dir)
    if _CALIBRATE in arguments.flags:
        from distllm.train.calibrate import calibrate

        path = calibrate(resolved.threads_per_rank, resolved.world.local_size, Path(resolved.config.runs_dir))
        print(f"measured: {path}")
    if _SCALE in arguments.flags:
        machine = machine_of_config(_stated(resolved.config))
        print(scaling_table(resolved, machine))
        return 0
    plan = _plan(resolved)
    if _JSON in arguments.flags:
        print(json.dumps(dataclasses.asdict(plan), indent=2))
    else:
        print(describe(plan, resolved))
    return 0


def _settled(overrides: Sequence[str], config_dir: Path | None) -> Resolved:
    """Compose and resolve; the dataset need not exist, and the run need not fit this machine."""

    def check(config: Config, problems: Problems) -> Resolved:
        return resolve(config, problems=problems, starts_here=False)

    raise_early(overrides, config_dir, check)
    problems = Problems()
    composition = composition_of(overrides, config_dir=config_dir, problems=problems)
    return check(composition.config, problems)


def _stated(config: Config) -> Config:
    """Return the configuration if its cluster profile states all figures.

    Raises:
        ConfigError: figures are missing.
    """
    lacking = missing_figures(config.cluster.hardware)
    if lacking:
        raise ConfigError(
            f"the cluster's profile does not state {', '.join(lacking)}",
            where=", ".join(f"cluster.hardware.{name}" for name in lacking),
            remedy="choose cluster=h100, h200, a100 or b200, or state the figures in a profile of your own",
        )
    return config


def _plan(resolved: Resolved) -> Plan:
    config = resolved.config
    if config.cluster.device == "cpu" and missing_figures(config.cluster.hardware):
        measured = read_calibration(Path(config.runs_dir))
        if measured is None:
            raise ConfigError(
                "this machine's CPUs have not been measured yet",
                where=f"runs_dir={config.runs_dir}",
                remedy="distllm plan --calibrate (a minute), or choose a cluster, such as cluster=h100",
            )
        return make_plan(resolved, machine_of_calibration(measured, resolved), measured.efficiency)
    return make_plan(resolved, machine_of_config(_stated(config)), FITTED)
