"""Kill a writer at random moments: whatever it was doing, the run can be resumed."""

import random
import signal
import subprocess
import sys
import time

from distllm.checkpoint.commit import recover
from distllm.checkpoint.format import newest_verified, verify

KILLS = 40

# Saves steps 1, 2, 2, 3, 3, … and prunes, reporting each step once it is safe.
WRITER = """
import random, sys
from pathlib import Path
from distllm.checkpoint.commit import transaction
from distllm.checkpoint.retention import Retention, prune

directory, step = Path(sys.argv[1]), int(sys.argv[2])
noise = random.Random(step)
while True:
    for _ in range(2):
        with transaction(directory, step) as files:
            for name in ("model-00000.safetensors", "optim-00000.safetensors", "state.json"):
                files.write(name, noise.randbytes(noise.randrange(200_000)))
        prune(directory, Retention(2))
        print(step, flush=True)
    step += 1
"""


def test_no_kill_makes_a_run_unresumable(tmp_path):
    delays = random.Random(0)
    safe = 0
    progress = set()
    for _ in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(safe + 1)], stdout=subprocess.PIPE, text=True
        )
        first = writer.stdout.readline()
        time.sleep(delays.random() * 0.05)
        writer.send_signal(signal.SIGKILL)
        reported = [first, *writer.stdout.read().splitlines()]
        writer.wait()
        writer.stdout.close()
        recover(tmp_path)
        info, damaged = newest_verified(tmp_path)
        assert damaged == []
        assert info.step >= int(reported[-1])
        verify(info.path)
        safe = info.step
        progress.add(safe)
    assert len(progress) == KILLS
    assert len(list(tmp_path.iterdir())) <= 3
