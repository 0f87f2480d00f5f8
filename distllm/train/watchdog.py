"""A rank's part in detecting a hang, or a launcher that has ended.

Under `distllm train` the supervisor watches, and a rank only answers its signals. Under another launcher each
rank runs its own watchdog: when the rank has made no progress for too long, it records what is known and ends
the process, which every launcher notices.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from distllm.cluster.hang import (
    COLLECTIVES_SIGNAL,
    STACKS_SIGNAL,
    Patience,
    collectives_path,
    explain_hang,
    find_hang,
    stacks_path,
)
from distllm.dist.topology import Topology
from distllm.errors import LaunchError
from distllm.heartbeat import BEATS_DIRECTORY, HEARTBEAT, read_beat
from distllm.machine import die_with_parent
from distllm.observe.ledger import LEDGER_FILE, Ledger

_WATCH_SECONDS = 1.0
_stacks: list[IO[str]] = []  # faulthandler keeps only the descriptor


def start_heartbeat(run_directory: Path, topology: Topology) -> None:
    """Start the heartbeat in the run directory, and answer the signals of a supervisor that sees a hang."""
    beats = run_directory / BEATS_DIRECTORY
    beats.mkdir(parents=True, exist_ok=True)
    _stacks.append(stacks_path(beats, topology.rank).open("w", encoding="utf-8"))
    faulthandler.register(STACKS_SIGNAL, file=_stacks[-1], all_threads=True)
    answers, asks = os.pipe()
    os.set_blocking(asks, False)
    signal.signal(COLLECTIVES_SIGNAL, lambda *_: None)
    # The C signal handler writes the byte, even while the main thread waits for other ranks.
    signal.set_wakeup_fd(asks, warn_on_full_buffer=False)
    _in_background(lambda: _answer(answers, collectives_path(beats, topology.rank)))
    HEARTBEAT.open(run_directory, topology.rank)


def start_watchdog(run_directory: Path, topology: Topology, patience: Patience, attempt: int) -> None:
    """Start the watchdog, which ends this process when it has made no progress for too long."""
    _in_background(lambda: _watch(run_directory, topology, patience, attempt))


def die_with_launcher() -> None:
    """Ask the kernel for SIGTERM when the launcher ends, so that the rank saves and ends as well."""
    die_with_parent(signal.SIGTERM)


def write_collectives(path: Path) -> None:
    """Write the flight recorder's latest collectives as JSON, whole or not at all."""
    from torch._C import _distributed_c10d

    partial = path.with_suffix(".partial")
    partial.write_bytes(_distributed_c10d._dump_fr_trace_json())  # type: ignore[attr-defined]
    partial.replace(path)


def _answer(requests: int, path: Path) -> None:
    while asked := os.read(requests, 1):
        if asked[0] == COLLECTIVES_SIGNAL:
            write_collectives(path)


def _watch(run_directory: Path, topology: Topology, patience: Patience, attempt: int) -> None:
    looked = time.monotonic()
    while HEARTBEAT.is_open:  # the process may do something else after the run
        time.sleep(_WATCH_SECONDS)
        now, slept = time.monotonic(), time.monotonic() - looked
        looked = now
        own = read_beat(run_directory, topology.rank)
        if not HEARTBEAT.is_open or own is None or slept > 2 * _WATCH_SECONDS:  # this process was stopped too
            continue
        seconds = find_hang([own], patience, now)
        if seconds is not None and seconds > patience.limit([own]) + _WATCH_SECONDS:
            _give_up(run_directory, topology, seconds, attempt)


def _give_up(run_directory: Path, topology: Topology, seconds: float, attempt: int) -> None:
    """End the process, whether or not the disk still takes the evidence."""
    try:
        _write_down(run_directory, topology, seconds, attempt)
    except Exception as error:  # the run hangs, and nobody else would end it
        print(f"distllm: the hang could not be written down: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(LaunchError.exit_code)


def _write_down(run_directory: Path, topology: Topology, seconds: float, attempt: int) -> None:
    """Keep the stacks and collectives of this rank; the first rank of all also reports the hang."""
    found = [read_beat(run_directory, rank) for rank in range(topology.world_size)]
    hang = explain_hang([beat for beat in found if beat is not None], seconds, [])
    beats = run_directory / BEATS_DIRECTORY
    faulthandler.dump_traceback(_stacks[-1], all_threads=True)
    write_collectives(collectives_path(beats, topology.rank))
    try:
        (beats / "hang").touch(exist_ok=False)
    except FileExistsError:
        return
    Ledger(run_directory / LEDGER_FILE, attempt).event("hang", **hang.facts(), stacks=BEATS_DIRECTORY)
    print(f"distllm: the run hangs: {hang.sentence}", file=sys.stderr, flush=True)


def _in_background(action: Callable[[], None]) -> None:
    threading.Thread(target=action, daemon=True, name="distllm-watchdog").start()
