"""Runs that save beside the training: killed, out of space, or started again where nothing is left."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import tiny

from distllm.checkpoint.format import list_checkpoints, list_quarantined, newest_verified
from distllm.checkpoint.mirror import Mirror

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STEPS = 10
ALONE = (
    "engine=local", "eval.every_steps=0", "cluster.procs_per_node=1", "cluster.threads_per_rank=1",
    f"train.max_steps={STEPS}", "guard.fingerprint_every_steps=0", "checkpoint.background=true",
)  # fmt: skip

# Runs command lines one after another in one process, and tells their exit codes.
MANY = """
import json, sys
from distllm.cli import main
print(json.dumps([main(words) for words in json.loads(sys.argv[1])]), file=sys.stderr)
"""


def train_all(root, *runs):
    """Train with each tuple of overrides, in one process; return the exit codes and what was said."""
    lines = [["train", *tiny.overrides(root, *ALONE, *more)] for more in runs]
    done = subprocess.run(
        [sys.executable, "-c", MANY, json.dumps(lines)],
        capture_output=True, text=True, timeout=280, check=False, env=tiny.environment(),
    )  # fmt: skip
    assert done.stderr, done.stdout
    return json.loads(done.stderr.splitlines()[-1]), done.stdout + done.stderr


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "flipped": flip,
    "deleted": lambda path: path.unlink(),
}
HALF_WAY = "train.stop_at_step=5"  # with checkpoints of 2, 4 and 5


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.prepare(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def outcome(root):
    url = f"file://{root}/elsewhere"
    remote = ("name=remote", f"checkpoint.dir={url}")
    first, told = train_all(
        root,
        ("name=whole",),
        ("name=rules", "checkpoint.ephemeral_every_steps=1", "checkpoint.keep_every_steps=3",
         "checkpoint.keep_last=1", f"checkpoint.dir={root}/fast"),
        ("name=full", "chaos.faults=[disk_full@4:0, disk_full@5:0]", "checkpoint.background=false"),
        ("name=fulltoolate", f"chaos.faults=[disk_full@{STEPS}:0]"),
        ("name=noroom", "checkpoint.keep_last=1000000000"),
        (*remote, HALF_WAY),
        *((f"name={name}", HALF_WAY) for name in DAMAGE),
    )  # fmt: skip
    shutil.rmtree(root / "runs" / "remote" / "checkpoints")
    for name, damage in DAMAGE.items():
        newest = list_checkpoints(root / "runs" / name / "checkpoints")[0]
        damage(max(newest.iterdir(), key=lambda path: path.stat().st_size))
    second, told_again = train_all(root, remote, *((f"name={name}",) for name in DAMAGE))
    return first + second, told + told_again


def exact(root, name):
    return tiny.exact(tiny.steps(root, name))


def events(root, name, *kinds):
    lines = map(json.loads, (root / "runs" / name / "ledger.jsonl").read_text().splitlines())
    return [(line["kind"], line.get("step")) for line in lines if line["kind"] in kinds]


def test_every_save_is_told_once_and_in_order(root, outcome):
    assert outcome[0][0] == 0
    assert events(root, "whole", "saved") == [("saved", step) for step in range(2, STEPS + 1, 2)]


def test_rules_and_another_disk(root, outcome):
    assert outcome[0][1] == 0
    kept = [int(path.name[5:]) for path in list_checkpoints(root / "fast" / "rules")]
    # Ordinary ones come every second step: 4 is the first at or after 3, 6 at or after 6, 10 after 9.
    assert kept == [10, 6, 4]
    assert (root / "runs" / "rules" / "checkpoints").resolve() == root / "fast" / "rules"
    assert exact(root, "rules") == exact(root, "whole")


def test_a_full_disk_costs_a_save_and_not_the_run(root, outcome):
    codes, told = outcome
    assert codes[2] == 0
    assert events(root, "full", "saved", "save_failed") == [
        ("saved", 2), ("save_failed", 4), ("saved", 6), ("saved", 8), ("saved", 10),
    ]  # fmt: skip
    assert "the checkpoint of step 4 was not written: no space left" in told
    assert exact(root, "full") == exact(root, "whole")


def test_the_last_save_must_succeed(root, outcome):
    codes, told = outcome
    assert codes[3] == 74
    assert "no space left" in told
    assert newest_verified(root / "runs" / "fulltoolate" / "checkpoints")[0].step == STEPS - 2


def test_a_disk_without_room_for_what_is_kept_is_refused_before_the_first_step(root, outcome):
    codes, told = outcome
    assert codes[4] == 74
    assert "no space for the checkpoints of this run: it needs 1000000001 of about" in told
    assert "checkpoint.keep_last" in told
    assert not (root / "runs" / "noroom" / "checkpoints").exists()


def test_a_machine_that_has_nothing_goes_on_from_the_url(root, outcome):
    codes, told = outcome
    assert (codes[5], codes[9]) == (0, 0)
    url = f"file://{root}/elsewhere/remote"
    assert f"fetched the checkpoint of step 5 from {url}" in told
    assert "resuming from step 5" in told
    assert exact(root, "remote") == exact(root, "whole")
    assert Mirror(url).steps() == [10, 8, 6]


def test_a_checkpoint_that_was_damaged_is_set_aside_by_name_and_the_one_before_it_gives_the_same_run(
    root, outcome
):
    codes, told = outcome
    assert codes[6:9] + codes[10:] == [0] * 6
    assert told.count("resuming from step 4") == len(DAMAGE)
    for name in DAMAGE:
        (aside,) = list_quarantined(root / "runs" / name / "checkpoints")
        assert aside.name.startswith("step-000000005.")
        assert str(aside) in told, "one clear line"
        assert exact(root, name) == exact(root, "whole")


def test_a_kill_while_a_save_is_written_loses_no_more_than_that_save(root, outcome):
    words = ("name=killed", "chaos.faults=[kill@8:0]")
    done = tiny.distllm("train", *tiny.overrides(root, *ALONE, *words))
    assert done.returncode == 0, done.stderr
    assert "killed by SIGKILL" in done.stderr
    resumed = next(line for line in done.stdout.splitlines() if "resuming from step" in line)
    assert any(f"step {step}," in resumed for step in (4, 6))
    assert exact(root, "killed") == exact(root, "whole")
