"""Kill a writer at any moment: whatever it was doing, the run can be resumed, and nothing is half there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = str(Path(__file__).parents[1])
RANDOM_KILLS, EXACT_KILLS, STAGES = 60, 37, ("partial", "replaced", "removed")

# Forks writers and kills them: at random moments, then at the n-th operation on files after a first save,
# for n = 1, 2, 3, …, and then once in every stage. A writer saves steps n, n, n+1, n+1, … (every second one
# in the background while its main thread goes on, every third one ephemeral), prunes by all rules, and
# reports each step that is safe. After each kill the directory must be whole.
NURSERY = """
import json, os, random, signal, sys, time
from pathlib import Path
from distllm.checkpoint.background import Background
from distllm.checkpoint.commit import recover
from distllm.checkpoint.format import list_checkpoints, newest_verified, verify
from distllm.checkpoint.retention import Retention, prune
from transactions import transaction

directory, random_kills, exact_kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
STAGES = sys.argv[4:]
RULES = Retention(2, every_steps=7, best=1)

def write(step, noise):
    state = {"ephemeral": step % 3 == 0, "facts": {"valid_loss": noise.random(), "valid_step": step}}
    with transaction(directory, step) as files:
        for name in ("model-00000.safetensors", "optim-00000.safetensors"):
            files.write(name, noise.randbytes(noise.randrange(200_000)), b"tail")
        files.write("state.json", json.dumps(state).encode())
    prune(directory, RULES)

def die_at(operation, stage):
    left = [operation]
    def count(event, arguments):
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if stage and any(f".{stage}." in str(argument) for argument in arguments):
                left[0] = 1  # the operation after the first that names the stage
    sys.addaudithook(count)

def save_for_ever(step, report, operation, stage):
    noise, beside = random.Random(step), Background()
    while True:
        for number in range(2):
            if number:
                beside.start(lambda: write(step, noise))
                while not beside.wait(0.001):
                    sum(range(1000))
                beside.result()
            else:
                write(step, noise)
            os.write(report, b"%d\\n" % step)
        step += 1
        if operation or stage:
            die_at(operation, stage)
            operation = stage = 0

delays, safe, seen = random.Random(0), 0, {"newest": set(), "left": set()}
for kill in range(random_kills + exact_kills + len(STAGES)):
    exact, last = kill + 1 - random_kills, kill - random_kills - exact_kills
    operation, stage = (0, STAGES[last]) if last >= 0 else (max(0, exact), "")
    source, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(source)
        save_for_ever(safe + 1, report, operation, stage)
    os.close(report)
    reported = os.read(source, 1 << 16)
    if kill < random_kills:
        time.sleep(delays.random() * 0.03)
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while more := os.read(source, 1 << 16):
        reported += more
    os.close(source)
    seen["left"] |= {path.name.split(".")[1] for path in directory.iterdir() if "." in path.name}
    recover(directory)
    info, damaged = newest_verified(directory, quarantine=False)
    assert damaged == [], damaged
    assert info.step >= int(reported.split()[-1]) > safe
    for path in list_checkpoints(directory):
        verify(path)
    assert all(path.name.startswith("step-") and "." not in path.name for path in directory.iterdir())
    safe = info.step
    seen["newest"].add(safe)
prune(directory, RULES)
kept = [int(path.name[5:]) for path in list_checkpoints(directory)]
print(json.dumps({"newest": len(seen["newest"]), "left": sorted(seen["left"]), "kept": kept}))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    directory = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-c", NURSERY, str(directory), str(RANDOM_KILLS), str(EXACT_KILLS), *STAGES],
        capture_output=True, text=True, check=False, timeout=280,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_kill_makes_a_run_unresumable(outcome):
    assert outcome["newest"] == RANDOM_KILLS + EXACT_KILLS + len(STAGES), (
        "each writer got further than the one before"
    )


def test_kills_hit_every_stage_of_a_save(outcome):
    assert set(STAGES) <= set(outcome["left"])


def test_the_rules_hold_over_kills(outcome):
    kept = outcome["kept"]
    multiples = range(7, max(kept) - 7, 7)
    assert len(kept) >= len(multiples)
    for multiple in multiples:
        assert any(multiple <= step < multiple + 7 for step in kept), multiple
