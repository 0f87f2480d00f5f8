"""The deepspeed launcher's list of machines: one ``HOST slots=RANKS`` a line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from distllm.cluster.hostlist import expand
from distllm.cluster.limits import resolves
from distllm.config.problems import Problems
from distllm.errors import ConfigError
from distllm.fsio import atomic_write_text
from distllm.registry import did_you_mean

_LINE = re.compile(r"(?P<host>[^\s=#]+)\s+slots=(?P<slots>\d+)")
_NUMBERS = re.compile(r"(\d+)(?:-(\d+))?")
_MOST_SLOTS = 4096


def read_hostfile(path: Path, problems: Problems) -> dict[str, int]:
    """Return the ranks of each host, in the file's order; every line that cannot be read is a problem."""
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


def chosen_slots(
    hosts: Mapping[str, int], include: str, exclude: str, problems: Problems
) -> dict[str, tuple[int, ...]]:
    """Return the slots of each host that take part, a rank each, in the file's order.

    Args:
        hosts: the number of slots of each host.
        include: the only hosts, or slots of hosts, that take part, such as ``n1@n2:0,2``; empty: all.
        exclude: hosts, or slots of hosts, that do not take part.
        problems: gets hosts and slots that cannot be read or do not exist, hosts without an address, and
            hosts with different numbers of slots.
    """
    wanted = _named(include, hosts, "include", problems)
    unwanted = _named(exclude, hosts, "exclude", problems)
    chosen: dict[str, tuple[int, ...]] = {}
    for host, count in hosts.items():
        there = wanted.get(host, set()) if include else set(range(count))
        if left := there - unwanted.get(host, set()):
            chosen[host] = tuple(sorted(left))
    if hosts and not chosen:
        problems.add("no host is left", where="include, exclude", remedy="include more, or exclude fewer")
    for host in chosen:
        if not resolves(host):
            problems.add(
                f"{host!r} does not resolve to an address",
                where="hostfile",
                remedy="give a name or address that this machine and all others can reach",
            )
    counts = sorted({len(slots) for slots in chosen.values()})
    if len(counts) > 1:
        problems.add(
            f"hosts have different numbers of slots: {', '.join(map(str, counts))}",
            where="hostfile, include, exclude",
            remedy=f"use {counts[0]} of every host: ranks wait for the slowest machine anyway",
        )
    return chosen


def _named(text: str, hosts: Mapping[str, int], key: str, problems: Problems) -> dict[str, set[int]]:
    """Return the slots that ``text`` names: DeepSpeed's ``n1@n2:0,2``, where ``n[1-4]`` is four hosts."""
    named: dict[str, set[int]] = {}
    for part in filter(None, text.split("@")):
        names, colon, slots = part.partition(":")
        try:
            among = expand(names)
        except ConfigError as error:
            problems.pass_on(error, where=key, remedy=error.remedy or "write it as n[1-4,7]")
            continue
        numbers = _numbers(slots)
        if colon and (numbers is None or "," in re.sub(r"\[.*?\]", "", names)):
            problems.add(
                f"{part!r} is ambiguous: which slots belong to which host?",
                where=key,
                remedy="write NAME:SLOT,SLOT for each host, with @ between them: n1:0,2@n2:0,2",
            )
            continue
        for host in among:
            if host not in hosts:
                if hosts:
                    problems.add(
                        f"{host!r} is not in the hostfile", where=key, remedy=did_you_mean(host, hosts)
                    )
                continue
            there = set(range(hosts[host]))
            if missing := (numbers or set()) - there:
                problems.add(
                    f"{host} has no slot {', '.join(map(str, sorted(missing)))}",
                    where=key,
                    remedy=f"its slots are 0 to {hosts[host] - 1}, as the hostfile says",
                )
            named[host] = named.get(host, set()) | ((numbers or there) & there)
    return named


def _numbers(text: str) -> set[int] | None:
    """Return the numbers in a text such as ``0,2`` or ``0-3,6``; None if it cannot be read."""
    numbers: set[int] = set()
    for part in text.split(","):
        match = _NUMBERS.fullmatch(part)
        if match is None:
            return None
        low, high = int(match[1]), int(match[2] or match[1])
        if high < low or high > _MOST_SLOTS:
            return None
        numbers |= set(range(low, high + 1))
    return numbers


def counts_from_zero(hosts: Mapping[str, Sequence[int]]) -> bool:
    """Whether every host takes part with its first slots, so that counts describe them completely."""
    return all(tuple(slots) == tuple(range(len(slots))) for slots in hosts.values())


def include_of(hosts: Mapping[str, Sequence[int]]) -> str:
    """Return the slots in the notation of the deepspeed launcher's ``--include``."""
    return "@".join(f"{host}:{','.join(map(str, slots))}" for host, slots in hosts.items())


def write_hostfile(path: Path, hosts: Mapping[str, Sequence[int]]) -> None:
    """Write the hosts that take part in the deepspeed launcher's format, with all slots up to the last."""
    atomic_write_text(path, "".join(f"{host} slots={max(slots) + 1}\n" for host, slots in hosts.items()))
