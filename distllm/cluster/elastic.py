"""torchrun on every machine: when one is lost, the others meet again and continue with fewer ranks.

The agents meet at a store on one machine, which must stay up. A lost agent is noticed after three missed
heartbeats of five seconds. The ranks elsewhere then fail in their next collective, their agents restart them,
and the run continues from its last checkpoint with the same global batch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from distllm.cluster.descendants import adopt_orphans, end_descendants
from distllm.cluster.limits import resolves
from distllm.cluster.local import FORWARDED
from distllm.config.problems import Problems
from distllm.config.schema import Config

_JOIN_SECONDS = 600
_LAST_CALL_SECONDS = 10
_GRACE_SECONDS = 60


def check_rendezvous(text: str, low: int, high: int, problems: Problems) -> None:
    """Check the address at which agents meet, and the bounds on their number."""
    host, _, port = text.rpartition(":")
    problems.check(
        bool(host) and port.isdigit() and 1024 <= int(port) < 65536,
        f"{text!r} is not HOST:PORT",
        keys=["rendezvous"],
        remedy="rendezvous=n1:29400, the same on every machine",
    )
    if host:
        problems.check(
            resolves(host),
            f"{host!r} does not resolve to an address",
            keys=["rendezvous"],
            remedy="give a name or address that every machine can reach",
        )
    problems.check(
        1 <= low <= high,
        f"elastic={low}:{high} allows no number of machines",
        keys=["elastic"],
        remedy="give the fewest first: elastic=2:4",
    )


def torchrun_command(config: Config, rendezvous: str, low: int, high: int, words: Sequence[str]) -> list[str]:
    """Return the command of one machine's agent."""
    settings = f"join_timeout={_JOIN_SECONDS},last_call_timeout={_LAST_CALL_SECONDS}"
    return [
        str(Path(sys.executable).with_name("torchrun")),
        f"--nnodes={low}:{high}",
        f"--nproc-per-node={config.cluster.procs_per_node}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={rendezvous}",
        f"--rdzv-id={config.name}",
        f"--rdzv-conf={settings}",
        f"--max-restarts={config.cluster.slurm.max_restarts}",
        "--monitor-interval=1",
        # Without this the agent dies of a signal and leaves its ranks behind.
        f"--signals-to-handle={','.join(number.name for number in FORWARDED)}",
        "--module",
        "distllm.launch.train",
        *words,
    ]


def run_agent(command: Sequence[str], config: Config) -> int:
    """Run this machine's agent to its end, pass signals on to it, and leave none of its ranks behind."""
    env = {**os.environ, **config.cluster.env, "DS_ACCELERATOR": config.cluster.device}
    agent = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True)

    def forward(number: int, _frame: FrameType | None) -> None:
        if agent.poll() is None:
            agent.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in FORWARDED}
    adopt_orphans()
    try:
        code = agent.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        end_descendants()
    return code if code >= 0 else 128 - code
