"""The ledger of runs that were killed, went back, and changed their ranks: every second and sample."""

import json
import shutil
import subprocess
import sys
from itertools import pairwise

import pytest
import tiny

from distllm.commands.runs import run_of
from distllm.commands.witnesses import idle_steps
from distllm.data.manifest import Manifest
from distllm.data.mixture import open_stream
from distllm.data.shards import index_of
from distllm.observe.goodput import account
from distllm.observe.ledger import read_events
from distllm.observe.sinks import last_steps

pytestmark = [pytest.mark.dist, pytest.mark.slow]

# Several shards, one of which is damaged.
LOCAL = ("engine=local", "eval=none", "data.shard_bytes=16384", "data.on_damage=skip", "data.max_damage=1")
SEQUENCES = 16  # of a step: 512 tokens in rows of 32


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("ledger")
    tiny.write_corpus(root / "corpus")
    done = tiny.distllm("prepare", *tiny.overrides(root, *LOCAL))
    assert done.returncode == 0, done.stderr
    shard = index_of(root / "data", Manifest.load(root / "data"))["text"]["train"][1]
    with (root / "data" / shard.record.path).open("r+b") as stream:
        stream.seek(shard.members["tokens.bin"].offset + 777)
        stream.write(b"\xff\xff")
    return root


def train(root, name, *more, attempts=1):
    """Run the same command until it succeeds, at most so often."""
    for _ in range(attempts):
        done = tiny.distllm("train", *tiny.overrides(root, f"name={name}", *LOCAL, *more))
        if done.returncode == 0:
            break
    return done


def events_of(root, name):
    return read_events(root / "runs" / name / "ledger.jsonl")


def of_kind(events, kind):
    return [event.fields for event in events if event.kind == kind]


@pytest.fixture(scope="module")
def eventful(root):
    """A skipped step, a rank killed, a stop, fewer ranks, and a rewind that leaves samples out."""
    more = ("train.max_steps=24", "checkpoint.every_steps=6")
    faults = "chaos.faults=[nan@4:0, kill@9:0]"
    first = train(root, "eventful", *more, "train.stop_at_step=12", faults, attempts=2)
    assert first.returncode == 0, first.stderr
    alone = ("cluster.procs_per_node=1", "chaos.faults=[spike@19:0x3]")
    second = train(root, "eventful", *more, *alone)
    assert second.returncode == 0, second.stderr
    events = events_of(root, "eventful")
    return events, account(events, last_steps(root / "runs" / "eventful" / "metrics.jsonl"))


def test_the_split_sums_to_the_wall(eventful):
    events, found = eventful
    wall = events[-1].time - events[0].time
    assert found.wall == pytest.approx(wall, rel=0.01)
    assert sum(found.seconds.values()) == pytest.approx(wall, rel=0.01)
    for category in ("productive", "checkpoint", "data", "overhead", "rework", "restart"):
        assert found.seconds[category] > 0, category
    assert found.seconds["productive"] < 0.5 * wall, "most of this run is starting up"
    assert found.seconds["hang"] == 0


def test_lost_steps_and_restarts_are_right(eventful):
    _, found = eventful
    assert found.step == 24
    assert found.lost_steps == (8 - 6) + (21 - 18)
    assert found.attempts == 3
    assert found.restarts["stopped"] == 1
    assert sum(found.restarts.values()) == 2
    assert found.failures == 1


def test_every_fault_is_in_the_ledger_with_its_particulars(eventful):
    events, _ = eventful
    assert [event["world_size"] for event in of_kind(events, "attempt")] == [2, 2, 1]
    assert [event["step"] for event in of_kind(events, "resumed")] == [0, 6, 12]
    skipped = of_kind(events, "skipped")
    assert [(event["step"], event["reason"]) for event in skipped] == [
        (4, "non_finite"),
        *((step, "loss_spike") for step in (19, 20, 21)),
    ]
    assert skipped[0]["samples"] == [3 * SEQUENCES, 4 * SEQUENCES]
    assert skipped[0]["ranks"] == [0]
    (rewind,) = of_kind(events, "rewind")
    assert (rewind["step"], rewind["to"]) == (21, 18)
    assert rewind["excluded"] == [18 * SEQUENCES, 21 * SEQUENCES]
    assert [event["step"] for event in of_kind(events, "saved")] == [6, 12, 18, 18, 24]
    assert [event.kind for event in events if event.kind in ("stopped", "done", "failed")][-2:] == [
        "stopped",
        "done",
    ]


def damage_of_steps(root):
    """How many samples of each step of the eventful run lie in the damaged shard, read by one rank."""
    resolved = run_of("eventful", str(root / "runs")).resolved()
    _, stream = open_stream(resolved, 0, resolved.world.size)
    found = {}
    for step in range(1, 25):
        before = stream.damaged
        stream.step((step - 1 if step < 19 else step + 2) * SEQUENCES)  # three steps were left out
        found[step] = stream.damaged - before
    stream.close()
    return found


def test_every_sample_is_accounted_for(root, eventful):
    events, _ = eventful
    (done,) = of_kind(events, "done")
    damaged = damage_of_steps(root)
    assert damaged[4] > 0
    assert 24 < sum(damaged.values()) < 24 * SEQUENCES / 2
    assert done["samples"] == {
        "promised": 27 * SEQUENCES,
        "seen": 24 * SEQUENCES,
        "trained": 23 * SEQUENCES - sum(damaged.values()) + damaged[4],
        "skipped": SEQUENCES - damaged[4],
        "excluded": 3 * SEQUENCES,
        "damaged": sum(damaged.values()),
    }


def test_the_command_tells_the_story(root, eventful):
    done = tiny.distllm("ledger", "run=eventful", f"runs_dir={root}/runs", "logbook=true")
    assert done.returncode == 0, done.stderr
    assert "5 steps lost" in done.stdout
    assert "continues from step 6; 2 steps to be taken again" in done.stdout
    assert (root / "runs" / "eventful" / "logbook.md").is_file()


# Loses a row of step 3, as a fault in the stream would.
LOSSY = """
import sys
from distllm.cli import main
from distllm.data.stream import StepStream

whole = StepStream.step

def lossy(self, first_sample, number):
    batches = whole(self, first_sample, number)
    return [batches[0].rows(1, 4), *batches[1:]] if first_sample == 2 * 16 else batches

StepStream.step = lossy
sys.exit(main(sys.argv[1:]))
"""


def test_done_is_refused_while_a_sample_is_missing(root):
    words = tiny.overrides(root, "name=lossy", *LOCAL, "cluster.procs_per_node=1")
    done = subprocess.run(
        [sys.executable, "-c", LOSSY, "train", *words],
        capture_output=True, text=True, timeout=240, check=False,
        env=tiny.environment(**tiny.only_rank()),  # in this process, not in one that it starts
    )  # fmt: skip
    assert done.returncode == 70, done.stderr
    assert "1 of 128 promised samples are unaccounted for" in done.stderr
    events = events_of(root, "lossy")
    assert of_kind(events, "done") == []
    (failed,) = of_kind(events, "failed")
    assert failed["error"] == "TrainingError"
    assert of_kind(events, "saved")[-1]["step"] == 8, "what was trained is kept"


def test_checkpoints_come_as_often_as_faults_and_costs_ask_for(root):
    """A failure every third of a second and a save that costs as much as a step: often."""
    often = ("checkpoint.every_steps=40", "checkpoint.mttf_hours=0.0001")
    # Ranks that disagreed about a save would wait for each other.
    done = train(root, "often", "train.max_steps=120", *often, "cluster.timeout_seconds=60")
    assert done.returncode == 0, done.stderr
    events = events_of(root, "often")
    derived = of_kind(events, "interval")
    assert derived[0]["step"] == 40, "until a save was measured, the upper bound holds"
    assert derived[0]["formula"] in done.stdout
    assert "sqrt(2 x" in derived[0]["formula"]
    steps = {event["step"]: event["steps"] for event in derived}
    saved, current = [event["step"] for event in of_kind(events, "saved")], 40
    for before, after in pairwise(saved[:-1]):
        current = steps.get(before, current)
        assert after - before == current
    assert min(steps.values()) < 40


def test_a_ledger_that_cannot_be_written_is_told_once_and_stops_nothing(root):
    directory = root / "runs" / "deaf"
    directory.mkdir(parents=True)
    (directory / "ledger.jsonl").symlink_to("/dev/full")
    done = train(root, "deaf", "cluster.procs_per_node=1")
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    told = [line["text"] for line in lines if "ledger" in line.get("text", "")]
    assert len(told) == 1
    assert "training continues without it" in told[0]


def test_steps_whose_samples_are_all_damaged_are_passed_over(root):
    shutil.copytree(root / "data", root / "damaged")
    for shard in index_of(root / "damaged", Manifest.load(root / "damaged"))["text"]["train"]:
        with (root / "damaged" / shard.record.path).open("r+b") as stream:
            stream.seek(shard.members["tokens.bin"].offset + 77)
            stream.write(b"\xff\xff")
    done = train(root, "passed", f"data.out={root / 'damaged'}", "train.max_steps=3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step passed over: none of its 16 samples has a target; 16 lie in damaged") == 3
    events = events_of(root, "passed")
    assert len(of_kind(events, "passed_over")) == 3
    assert idle_steps(root / "runs" / "passed") == [1, 2, 3]
    (end,) = of_kind(events, "done")
    assert (end["samples"]["damaged"], end["samples"]["trained"]) == (3 * SEQUENCES, 0)
