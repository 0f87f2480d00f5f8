"""`distllm launch`: train on several machines without a scheduler, by the deepspeed launcher or torchrun."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distllm.commands.arguments import parse_config_arguments, parse_options, split_options
from distllm.config.options import option
from distllm.errors import ConfigError

if TYPE_CHECKING:
    from distllm.cluster.remote import Remote

_HELP = (
    "Train on several machines. hostfile=FILE starts the ranks of all machines from here with the "
    "deepspeed launcher (include=HOSTS[:SLOTS], exclude=HOSTS[:SLOTS], launcher=pdsh|openmpi, port=N). "
    "rendezvous=HOST:PORT elastic=MIN:MAX, run on every machine, starts the ranks of this one with "
    "torchrun; when a machine is lost, the others continue. dry_run=true prints the command"
)
_ELASTIC = re.compile(r"(\d+)(?::(\d+))?")


@dataclass(frozen=True)
class Options:
    """Options of `distllm launch`, besides a configuration."""

    hostfile: str | None = option(None, "file with a line HOST slots=RANKS for each machine")
    include: str = option(
        "",
        "hosts of the hostfile, or slots of them, that take part, as n1,n7 or n[1-4] or n1:0,2@n2:0,2; "
        "empty: all of them",
    )
    exclude: str = option("", "hosts of the hostfile, or slots of them, that do not take part")
    launcher: Literal["pdsh", "openmpi"] = option("pdsh", "how the deepspeed launcher reaches the hosts")
    port: int = option(
        29400, "first of the 100 ports of which each start uses one for its rendezvous", minimum=1024
    )
    rendezvous: str | None = option(None, "HOST:PORT of the machine on which torchrun's agents meet")
    elastic: str | None = option(None, "number of machines, as N or MIN:MAX, with rendezvous")
    dry_run: bool = option(False, "print the command and start nothing")


def run(words: Sequence[str]) -> int:
    """Start a run on several machines and wait until it has ended."""
    mine, rest = split_options(Options, words)
    arguments = parse_config_arguments("launch", _HELP, rest)
    options = parse_options("launch", Options, mine)
    if (options.hostfile is None) == (options.rendezvous is None):
        raise ConfigError(
            "give hostfile=FILE, or rendezvous=HOST:PORT with elastic=MIN:MAX",
            where="distllm launch",
            remedy="see distllm launch --help; one machine alone: distllm train",
        )
    if options.hostfile is not None:
        return _by_hostfile(options, arguments.overrides, arguments.config_dir)
    return _by_torchrun(options, arguments.overrides, arguments.config_dir)


def _by_hostfile(options: Options, overrides: list[str], config_dir: Path | None) -> int:
    from distllm.cluster.hostfile import chosen_slots, read_hostfile, write_hostfile
    from distllm.cluster.remote import HOSTFILE, deepspeed_command, supervise_remote
    from distllm.commands.submit_checks import settle_run
    from distllm.config.problems import Problems
    from distllm.config.yaml import to_yaml

    problems = Problems()
    listed = read_hostfile(Path(options.hostfile or ""), problems)
    hosts = chosen_slots(listed, options.include, options.exclude, problems)
    ranks = len(next(iter(hosts.values()), (0,)))
    words = [*overrides, f"cluster.nodes={max(1, len(hosts))}", f"cluster.procs_per_node={ranks}"]
    found = settle_run(words, config_dir, problems)
    for line in found.notes:
        print(f"{found.config.name}: {line}")
    remote = _remote(
        options, hosts, found.run_dir / "slurm" / "submissions" / "NNN", found.config.cluster.head
    )
    if options.dry_run:
        print(shlex.join(deepspeed_command(remote, remote.head, remote.port)))
        return 0
    from dataclasses import replace

    from distllm.cluster.control import Control
    from distllm.cluster.snapshot import keep_submission

    deepspeed_command(remote, remote.head, remote.port)  # raises if a program is missing, before any write
    kept = keep_submission(found.run_dir, found.words, to_yaml(asdict(found.config)), config_dir)
    write_hostfile(kept.path / HOSTFILE, hosts)
    Control(kept.run_dir).forget_all()
    return supervise_remote(replace(remote, submission=kept))


def _remote(options: Options, hosts: Mapping[str, Sequence[int]], place: Path, head: str | None) -> Remote:
    from distllm.cluster.remote import Remote
    from distllm.cluster.snapshot import Submission

    unmade = Submission(place, (), place, Path.cwd())
    return Remote(unmade, hosts, options.launcher, head or next(iter(hosts)), options.port)


def _by_torchrun(options: Options, overrides: list[str], config_dir: Path | None) -> int:
    from distllm.cluster.elastic import check_rendezvous, run_agent, torchrun_command
    from distllm.commands.submit_checks import settle_run
    from distllm.config.problems import Problems

    problems = Problems()
    match = _ELASTIC.fullmatch(options.elastic or "")
    if match is None:
        problems.add(
            f"elastic={options.elastic} is not a number of machines",
            where="elastic",
            remedy="give elastic=4, or elastic=2:4 to continue when two of four are lost",
        )
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 1)
    check_rendezvous(options.rendezvous or "", low, high, problems)
    found = settle_run([*overrides, f"cluster.nodes={max(low, high, 1)}"], config_dir, problems, fewest=low)
    command = torchrun_command(
        found.config, options.rendezvous or "", low, high, [*found.words, *_directory(config_dir)]
    )
    if options.dry_run:
        print(shlex.join(command))
        return 0
    return run_agent(command, found.config)


def _directory(config_dir: Path | None) -> list[str]:
    return ["--config-dir", str(config_dir.absolute())] if config_dir else []
