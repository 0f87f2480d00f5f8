"""The deepspeed launcher's list of machines: one ``HOST slots=RANKS`` a line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from distllm.cluster.limits import resolves
from distllm.config.problems import Problems
from distllm.registry import did_you_mean

_LINE = re.compile(r"(?P<host>[^\s=#]+)\s+slots=(?P<slots>\d+)")


def read_hostfile(path: Path, problems: Problems) -> dict[str, int]:
    """Return the ranks of each host, in the file's order; note every line that cannot be used."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.add(
            f"cannot read {path}: {error}", where="hostfile", remedy="write HOST slots=RANKS on each line"
        )
        return {}
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match, where = _LINE.fullmatch(text), f"{path}:{number}"
        if match is None:
            problems.add(
                f"cannot read {text!r}", where=where, remedy="write HOST slots=RANKS, such as n1 slots=8"
            )
        elif match["host"] in hosts:
            problems.add(
                f"{match['host']} is listed twice", where=where, remedy="give all its ranks on one line"
            )
        elif int(match["slots"]) < 1:
            problems.add(
                f"{match['host']} has no slots", where=where, remedy="remove the line, or exclude the host"
            )
        else:
            hosts[match["host"]] = int(match["slots"])
    if not hosts and not problems.found:
        problems.add(f"{path} lists no host", where="hostfile", remedy="write HOST slots=RANKS on each line")
    return hosts


def chosen_hosts(
    hosts: dict[str, int], include: Sequence[str], exclude: Sequence[str], problems: Problems
) -> dict[str, int]:
    """Return the hosts that take part, and note names that are in no list and hosts without address."""
    for key, names in (("include", include), ("exclude", exclude)):
        for name in names:
            if hosts and name not in hosts:
                problems.add(f"{name!r} is not in the hostfile", where=key, remedy=did_you_mean(name, hosts))
    chosen = {
        host: slots
        for host, slots in hosts.items()
        if (not include or host in include) and host not in exclude
    }
    if hosts and not chosen:
        problems.add("no host is left", where="include, exclude", remedy="include fewer, or exclude fewer")
    for host in chosen:
        if not resolves(host):
            problems.add(
                f"{host!r} does not resolve to an address",
                where="hostfile",
                remedy="give a name or address that this machine and all others can reach",
            )
    counts = sorted(set(chosen.values()))
    if len(counts) > 1:
        problems.add(
            f"hosts have different numbers of slots: {', '.join(map(str, counts))}",
            where="hostfile",
            remedy=f"slots={counts[0]} on every line: ranks wait for the slowest machine anyway",
        )
    return chosen


def write_hostfile(path: Path, hosts: dict[str, int]) -> None:
    """Write the hosts that take part as the deepspeed launcher reads them."""
    from distllm.fsio import atomic_write_text

    atomic_write_text(path, "".join(f"{host} slots={slots}\n" for host, slots in hosts.items()))
