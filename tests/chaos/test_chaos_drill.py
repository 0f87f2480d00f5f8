"""`distllm chaos` on two ranks: every fault is noticed, named and survived, and nothing is left behind."""

import json

import psutil
import pytest
import tiny

from distllm.observe.goodput import account
from distllm.observe.ledger import read_events
from distllm.observe.sinks import last_steps

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(900)]

# A busy machine may keep all ranks of a step from moving for seconds.
FAST = ("engine=local", "eval=none", "cluster.hang_seconds=5", "chaos.spacing=4", "train.max_steps=90")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.prepare(tmp_path_factory.mktemp("drill"))


def drill(root, name, *kinds):
    words = tiny.overrides(root, f"name={name}", *FAST, "chaos=ci", f"chaos.kinds=[{','.join(kinds)}]")
    done = tiny.distllm("chaos", *words, timeout=900)
    directory = root / "runs" / f"{name}-chaos"
    assert (directory / "scorecard.json").exists(), done.stdout + done.stderr
    card = json.loads((directory / "scorecard.json").read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    assert card["passed"]
    return directory, {row["fault"].partition("@")[0]: row for row in card["rows"]}


def left_behind(root):
    """Processes that still mention a directory of the test."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = " ".join(process.info["cmdline"] or ())
        if str(root) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(words)
    return found


@pytest.fixture(scope="module")
def short(root):
    """Everything at once: each drill begins with an undisturbed run."""
    ranks = ("kill", "stop", "hang", "skip_collective", "disk_full", "slow", "term", "clock_skew")
    around = ("corrupt_shard", "missing_shard", "stalled_shard", "tracker_down")
    return drill(root, "short", *ranks, "flip_checkpoint", "nan", "spike", *around)


def fault_of(row):
    """The step and the rank of a row."""
    step, _, rank = row["fault"].partition("@")[2].partition("x")[0].partition(":")
    return int(step), int(rank)


def events_of(directory, kind):
    return [event for event in read_events(directory / "recover" / "ledger.jsonl") if event.kind == kind]


def test_faults_are_noticed_in_time_and_named(short):
    _, rows = short
    assert rows["kill"]["detected_seconds"] <= 5
    stop = rows["stop"]
    rank = int(stop["fault"].partition(":")[2])
    assert stop["cause"].startswith(f"rank {rank} on ")
    assert "is stopped (SIGSTOP) in compute of step" in stop["cause"]
    assert f"rank {1 - rank} waits in 'gathering numbers'" in stop["cause"]
    skipped = rows["skip_collective"]
    rank = int(skipped["fault"].partition(":")[2])
    assert skipped["cause"].startswith(f"rank {rank} on ")
    assert "skipped a collective" in skipped["cause"]
    assert rows["nan"]["cause"] == "non_finite"
    assert rows["spike"]["cause"] == "loss_spike"


def test_a_rank_that_sleeps_is_named_with_the_exchange_that_waits_for_it(short):
    _, rows = short
    _, rank = fault_of(rows["hang"])
    assert rows["hang"]["cause"].startswith(f"rank {rank} on ")
    assert f"rank {1 - rank} waits in 'gathering numbers'" in rows["hang"]["cause"]
    assert rows["hang"]["detected_seconds"] < 60


def test_a_straggler_is_named_within_twenty_steps(short):
    directory, rows = short
    step, rank = fault_of(rows["slow"])
    found = [(event.fields["rank"], event.fields["step"]) for event in events_of(directory, "straggler")]
    assert any(named == rank and step <= at < step + 20 for named, at in found), found
    assert (rows["slow"]["lost_steps"], rows["slow"]["cause"]) == (0, "straggler")


def test_a_full_disk_costs_one_save_and_no_step(short):
    directory, rows = short
    step, rank = fault_of(rows["disk_full"])
    (failed,) = events_of(directory, "save_failed")
    assert failed.fields["step"] == step
    assert failed.fields["why"].startswith("no space left")
    assert failed.fields["why"].endswith(f"(rank {rank})")
    assert (rows["disk_full"]["lost_steps"], rows["disk_full"]["exit_code"]) == (0, 75)


def test_a_clock_that_jumps_and_a_tracker_that_is_gone_change_nothing(short):
    directory, rows = short
    assert rows["clock_skew"]["problem"] == ""
    assert (rows["tracker_down"]["exit_code"], rows["tracker_down"]["problem"]) == (0, "")
    assert rows["tracker_down"]["cause"].startswith("no server: kept in offline-run-")
    assert (directory / "servers" / "wandb" / rows["tracker_down"]["cause"].rpartition(" ")[2]).is_dir()


def test_recovery_is_exact_and_loses_what_lies_behind_the_checkpoint(short):
    _, rows = short
    exact = ("kill", "stop", "hang", "skip_collective", "term", "flip_checkpoint")
    exact += ("disk_full", "slow", "clock_skew", "tracker_down")
    assert {rows[kind]["equality"] for kind in exact} == {"bit-equal"}
    assert rows["term"]["lost_steps"] == 0
    assert rows["term"]["exit_code"] == 75
    every = 2
    assert all(rows[kind]["lost_steps"] <= every for kind in ("kill", "stop", "hang", "skip_collective"))
    assert rows["flip_checkpoint"]["lost_steps"] <= 2 * every, "the damaged one is passed over"


def test_what_ranks_did_when_they_hung_is_kept(short):
    directory, _ = short
    hangs = sorted((directory / "recover" / "hangs").iterdir())
    assert len(hangs) == 3
    for kept in hangs:
        for rank in range(2):
            stack = (kept / f"rank-{rank:05d}.stacks.txt").read_text()
            assert "train_step" in stack
            recorded = json.loads((kept / f"rank-{rank:05d}.collectives.json").read_text())
            assert recorded["entries"][-1]["profiling_name"].startswith("gloo:")


def test_the_ledger_accounts_for_every_second_and_cause(short):
    directory, _ = short
    run = directory / "recover"
    events = read_events(run / "ledger.jsonl")
    found = account(events, last_steps(run / "metrics.jsonl"))
    assert found.wall == pytest.approx(events[-1].time - events[0].time, rel=0.01)
    assert found.seconds["hang"] > 5
    assert found.restarts == {"killed by SIGKILL": 2, "hang": 3, "stopped": 1}
    assert found.lost_steps > 0
    assert found.failures == 5


def test_nothing_is_left_behind(short, root):
    directory, _ = short
    assert left_behind(root) == []
    assert list(directory.glob("*/owner.json")) == []


def test_damaged_and_missing_shards_are_refused_and_a_stalled_server_is_asked_again(short):
    _, rows = short
    assert rows["corrupt_shard"]["exit_code"] == 65
    assert "damaged" in rows["corrupt_shard"]["cause"]
    assert rows["missing_shard"]["exit_code"] in (64, 65)
    data = ("corrupt_shard", "missing_shard", "stalled_shard")
    assert {rows[kind]["equality"] for kind in data} == {"bit-equal"}
    assert rows["stalled_shard"]["detected_seconds"] >= 2
