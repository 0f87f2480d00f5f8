"""SLURM's commands as functions: what a cluster has, what is queued, and submitting jobs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distllm.errors import LaunchError

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_MEMORY = re.compile(r"(\d+)([KMGTkmgt]?)B?")
_GPUS = re.compile(r"gpu(?::[^:(,]+)?:(\d+)")
_TOOL_SECONDS = 60
UNREACHABLE = "Unable to contact slurm controller"
"""What SLURM's commands print when the controller has certainly not received the request."""
_NO_CONTROLLER = re.compile(rf"{UNREACHABLE}|Socket timed out|Connection refused|Zero Bytes")
_WOULD_START = re.compile(r"Job \d+ to start at (\S+) using \d+ processors on nodes (\S+) in partition (\S+)")
_NO_ANSWER = "try again later: the controller is down or overloaded (scontrol ping); running jobs continue"
DOWN = ("down", "drain", "fail", "no_respond", "unk", "error", "not_responding")


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Nodes of one kind in one partition, as ``sinfo`` groups them. Times are seconds, memory MiB."""

    partition: str
    is_default: bool
    is_up: bool
    time_limit: int | None
    nodes: int
    cpus: int
    memory: int
    gpus: int


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """One line of ``squeue``."""

    job: str
    state: str
    reason: str
    nodes: str
    time_left: str
    name: str


class NoAnswerError(LaunchError):
    """SLURM's controller did not answer: it has neither refused the request nor confirmed it."""


@dataclass(frozen=True, slots=True)
class Task:
    """One record of ``scontrol show job``: a job, or tasks of an array such as ``7_3`` or ``7_[4-9]``."""

    id: str
    name: str
    state: str


def call(*words: str, stderr: bool = False) -> str:
    """Run one of SLURM's commands and return its output, or with ``stderr`` its standard error.

    Raises:
        LaunchError: the command is not installed here, or SLURM refused.
        NoAnswerError: SLURM did not answer.
    """
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=_TOOL_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise LaunchError(
            f"{words[0]} is not installed on this machine",
            where=words[0],
            remedy="run this on a login node; without SLURM use distllm train or distllm launch",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise NoAnswerError(
            f"{words[0]} did not answer within {_TOOL_SECONDS} seconds",
            where=" ".join(words),
            remedy=_NO_ANSWER,
        ) from error
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        _require_answer(said, words)
        raise LaunchError(
            f"SLURM refused: {said}",
            where=" ".join(words),
            remedy="fix what SLURM names; limits of partitions: sinfo, of accounts: sacctmgr show assoc",
        )
    return done.stderr if stderr else done.stdout


def node_groups() -> list[NodeGroup]:
    """Return the kinds of nodes in each partition.

    Raises:
        LaunchError: see `call`.
    """
    rows = [line.split("|") for line in call("sinfo", "-h", "-o", "%P|%a|%l|%D|%c|%m|%G").splitlines()]
    return [
        NodeGroup(
            partition=row[0].rstrip("*"),
            is_default=row[0].endswith("*"),
            is_up=row[1] == "up",
            time_limit=parse_time(row[2]),
            nodes=int(row[3]),
            cpus=_leading_number(row[4]),
            memory=_leading_number(row[5]),
            gpus=sum(map(int, _GPUS.findall(row[6]))),
        )
        for row in rows
        if len(row) == 7
    ]


def queued_jobs(jobs: Iterable[str] = ()) -> list[QueuedJob]:
    """Return this user's waiting and running jobs, or those among ``jobs``.

    Raises:
        LaunchError: see `call`.
    """
    wanted = set(jobs)
    # The name comes last: it may hold the separator.
    lines = call("squeue", "-h", "-r", "--me", "-o", "%i|%T|%r|%N|%L|%j").splitlines()
    rows = [line.split("|", 5) for line in lines]
    found = [QueuedJob(*row) for row in rows if len(row) == 6]
    return [job for job in found if not wanted or job.job in wanted or job.job.split("_")[0] in wanted]


def _require_answer(said: str, words: Sequence[str]) -> None:
    """Distinguish a controller that does not answer from one that refuses."""
    if _NO_CONTROLLER.search(said):
        raise NoAnswerError(
            f"SLURM's controller does not answer: {said}", where=" ".join(words), remedy=_NO_ANSWER
        )


def tasks_of(job: str) -> list[Task]:
    """Return SLURM's records of a job of any user; none if it does not know the job (any more).

    Raises:
        LaunchError: see `call`.
    """
    try:
        lines = call("scontrol", "show", "job", "-o", job).splitlines()
    except LaunchError as error:
        if "Invalid job id" in error.cause:
            return []
        raise
    found = []
    for line in lines:
        words = dict(word.split("=", 1) for word in line.split() if "=" in word)
        array, task = words.get("ArrayJobId"), words.get("ArrayTaskId")
        name = f"{array}_{task if task.isdigit() else f'[{task}]'}" if array and task else job
        found.append(Task(name, words.get("JobName", ""), words.get("JobState", "")))
    return found


def max_array_size() -> int | None:
    """Return how many tasks an array may have here; None if SLURM does not say.

    Raises:
        LaunchError: see `call`.
    """
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"), re.MULTILINE)
    return int(found[1]) if found else None


def would_start(options: Sequence[str]) -> str:
    """Return SLURM's forecast of when and where a job with these options would start; nothing is submitted.

    Raises:
        LaunchError: see `call`.
    """
    told = call("sbatch", "--test-only", *options, "--wrap", "true", stderr=True)
    said = " ".join(told.removeprefix("sbatch: ").split())
    if (found := _WOULD_START.fullmatch(said)) is None:
        return said
    when, nodes, partition = found.groups()
    return f"SLURM would start it at {when} on {nodes}, partition {partition}"


def submit(script: str, options: Sequence[str] = (), arguments: Sequence[str] = ()) -> str:
    """Submit a script and return the number of its job.

    Raises:
        LaunchError: see `call`.
    """
    return call("sbatch", "--parsable", *options, script, *arguments).strip().split(";")[0]


def requeue(job: str) -> bool:
    """Queue a running job again, from its own script; return whether SLURM has certainly agreed.

    SLURM ends the processes of the script at once, including this command: if the command was killed, the
    request has probably arrived. The caller ignores SIGTERM, and the command inherits that.

    Raises:
        LaunchError: SLURM refused, or is not installed.
        NoAnswerError: SLURM did not answer.
    """
    words = ("scontrol", "requeue", job)
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TOOL_SECONDS, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise LaunchError(str(error), where=" ".join(words), remedy="see scontrol ping") from error
    if done.returncode > 0:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        _require_answer(said, words)
        raise LaunchError(
            f"SLURM refused: {said}", where=" ".join(words), remedy="cluster.slurm.requeue=false"
        )
    return done.returncode == 0


def unusable(nodes: Sequence[str]) -> dict[str, str]:
    """Return the nodes among ``nodes`` that SLURM no longer uses, with their state.

    Raises:
        LaunchError: see `call`.
    """
    if not nodes:
        return {}
    lines = call("sinfo", "-h", "-N", "-n", ",".join(nodes), "-o", "%N|%T").splitlines()
    states = dict(line.split("|", 1) for line in lines if "|" in line)
    return {
        node: state
        for node, state in states.items()
        if state.endswith("*") or state.rstrip("*~#!%$@^-").startswith(DOWN)
    }


def parse_time(text: str) -> int | None:
    """Parse a time in SLURM's notation: ``90`` (minutes), ``1:30:00``, ``2-12``, ``2-12:30``.

    Returns:
        Seconds; None for no limit.

    Raises:
        ValueError: the text is not such a time.
    """
    if text.strip().lower() in ("infinite", "unlimited", "n/a"):
        return None
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a time such as 90 (minutes), 12:00:00 or 2-00:00:00")
    days, *rest = match.groups()
    first, second, third = (int(part) if part else None for part in rest)
    if days is not None:
        hours, minutes, seconds = first or 0, second or 0, third or 0
    elif second is None:
        hours, minutes, seconds = 0, first or 0, 0
    elif third is None:
        hours, minutes, seconds = 0, first or 0, second
    else:
        hours, minutes, seconds = first or 0, second, third
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def parse_memory(text: str) -> int:
    """Parse a node's memory in SLURM's notation, ``64G`` or ``512000`` (MiB), to bytes; ``0`` means all.

    Raises:
        ValueError: the text is not such an amount.
    """
    match = _MEMORY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not an amount of memory such as 64G, 512000M or 0")
    return int(match[1]) << {"K": 10, "M": 20, "G": 30, "T": 40}[(match[2] or "M").upper()]


def _leading_number(text: str) -> int:
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0
