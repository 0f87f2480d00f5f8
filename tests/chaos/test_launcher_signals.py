"""What other launchers lose: ranks that a dead launcher leaves behind save, stop, and are no orphans."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tiny

from distllm.checkpoint.format import list_checkpoints
from distllm.observe.ledger import read_events

pytestmark = [pytest.mark.dist, pytest.mark.slow]

SCRIPT = str(Path(__file__).resolve().parents[2] / "launch" / "train.py")
BIN = Path(sys.executable).parent
ENDLESS = ("engine=local", "eval=none", "train.max_steps=100000", "checkpoint.every_steps=100000")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.prepare(tmp_path_factory.mktemp("signals"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        (["torchrun", "--nproc-per-node", "2", "--master-port"], signal.SIGUSR1),
        (["deepspeed", "--num_gpus", "2", "--master_port"], signal.SIGTERM),
    ],
)
def test_ranks_whose_launcher_dies_of_a_signal_save_and_end(root, launcher, number):
    name = launcher[0]
    words = [
        str(BIN / name),
        *launcher[1:],
        free_port(),
        SCRIPT,
        *tiny.overrides(root, f"name={name}", *ENDLESS),
    ]
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        words,
        env=tiny.environment(PATH=path, DS_ACCELERATOR="cpu"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        metrics = root / "runs" / name / "metrics.jsonl"
        deadline = time.monotonic() + 200
        while not (metrics.exists() and max(tiny.steps(root, name), default=0) >= 2):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        process.wait(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=60)
    for orphan in alive:
        orphan.kill()
    assert alive == []
    reached = max(tiny.steps(root, name))
    checkpoints = list_checkpoints(root / "runs" / name / "checkpoints")
    assert [path.name for path in checkpoints] == [f"step-{reached:09d}"], "no step is lost"
    last = read_events(root / "runs" / name / "ledger.jsonl")[-1]
    assert (last.kind, last.fields["step"]) == ("stopped", reached)
