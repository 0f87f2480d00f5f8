"""The schedule of a drill, and how its runs are judged from what they wrote."""

import contextlib
import json
import os
import time
import urllib.request

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distllm.cluster import drill_runs
from distllm.cluster.drill_runs import Ground, run_drill
from distllm.cluster.drills import SHARDS, SIGNS, SPIKE_STEP, Drill, plan_drills, save_every
from distllm.cluster.scorecard import Command, as_json, as_text, score
from distllm.config.compose import compose
from distllm.config.faults import AROUND, KINDS, Fault
from distllm.config.resolve import resolve
from distllm.errors import ConfigProblems
from distllm.observe.ledger import Ledger
from distllm.observe.metrics import StepRecord
from distllm.observe.sinks import JsonlSink

ALL = [*KINDS, *AROUND]


@given(
    st.lists(st.sampled_from(ALL), unique=True, min_size=1),
    st.integers(0, 99),
    st.integers(4, 50),
    st.integers(1, 8),
)
def test_every_kind_happens_once_in_order_where_it_can_be_survived(kinds, seed, spacing, ranks):
    drills = plan_drills(kinds, seed=seed, spacing=spacing, world_size=ranks)
    assert drills == plan_drills(kinds, seed=seed, spacing=spacing, world_size=ranks)
    happening = [fault.kind for drill in drills for fault in drill.faults]
    happening += [kind for drill in drills for kind in drill.around]
    assert sorted(happening) == sorted(kinds)
    for drill in drills:
        steps = [fault.step for fault in drill.faults]
        assert steps == sorted(set(steps))
        for fault in drill.faults:
            assert 0 <= fault.rank < ranks
            assert fault.step + fault.steps <= drill.steps
            if fault.kind.endswith("_checkpoint"):
                assert fault.step > 2 * save_every(spacing), "there is one to fall back to"
            if fault.kind == "clock_skew":
                behind = [other.kind for other in drill.faults if other.step > fault.step]
                assert all(kind.endswith("_checkpoint") for kind in behind), "noticed by the supervisor"
            if fault.kind == "spike":
                assert fault.step >= SPIKE_STEP
            if fault.kind == "disk_full":
                assert fault.step % save_every(spacing) == 0


def test_another_seed_is_another_schedule():
    plans = {str(plan_drills(ALL, seed=seed, spacing=20, world_size=4)) for seed in range(5)}
    assert len(plans) == 5


def test_every_kind_is_noticed_by_some_event():
    silent = set(ALL) - SIGNS.keys()
    assert silent == {"clock_skew", *AROUND}, "an hour back must not matter"


@pytest.mark.parametrize("schedule", ["ci", "full"])
def test_the_schedules_name_known_kinds(schedule):
    kinds = compose([f"chaos={schedule}"]).chaos.kinds
    assert set(kinds) <= set(ALL)
    assert schedule == "ci" or set(kinds) == set(ALL)


def test_a_mistyped_kind_is_a_problem_of_the_configuration():
    with pytest.raises(ConfigProblems) as caught:
        resolve(compose(["train.max_steps=5", "chaos.kinds=[kil]"]))
    (problem,) = caught.value.problems
    assert problem.where == "chaos.kinds"
    assert "kill" in problem.remedy


def record(step, loss=3.0):
    numbers = {"tokens": 0, "lr": 0.1, "grad_norm": 1.0, "tokens_per_second": 1.0, "mfu": None}
    numbers |= {"data_wait_fraction": 0.0, "overhead_fraction": 0.0, "memory_bytes": 1, "eta_seconds": 0.0}
    return StepRecord(
        step=step, loss=loss, skipped_steps=0, attempt=1, batch_digest="d", chain="c", **numbers
    )


def write_run(directory, losses, events=()):
    """What a run leaves: metrics of its steps, and events as (kind, fields)."""
    directory.mkdir(parents=True)
    sink = JsonlSink(directory, 1)
    for step, loss in enumerate(losses, 1):
        sink.log_step(record(step, loss))
    ledger = Ledger(directory / "ledger.jsonl", 1)
    ledger.event("attempt")
    for kind, fields in events:
        ledger.event(kind, **fields)


def inflict(directory, fault, ago=0.0):
    mark = directory / "chaos" / f"{fault.kind}@{fault.step}:{fault.rank}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    moment = time.time() - ago
    os.utime(mark, (moment, moment))


KILL = Fault("kill", 4, 1)
RECOVERED = (("killed", {"rank": 1, "signal": "SIGKILL"}), ("resumed", {"step": 2}))


@pytest.fixture
def judge(tmp_path):
    write_run(tmp_path / "reference", [3.0, 2.0, 1.5, 1.25])

    def row(
        fault=KILL, losses=(3.0, 2.0, 1.5, 1.25), events=RECOVERED, codes=(0,), ago=0.0, equality="exact"
    ):
        write_run(tmp_path / "run", losses, events)
        inflict(tmp_path / "run", fault, ago)
        now = time.time()
        commands = [Command(code, now - 100, now + 100) for code in codes]
        drill = Drill("run", (fault,), (), 4, equality)
        return score(drill, tmp_path / "run", commands, tmp_path / "reference", 30.0)[0]

    return row


def test_a_fault_that_was_survived(judge):
    row = judge()
    assert (row.problem, row.equality, row.lost_steps, row.exit_code) == ("", "bit-equal", 1, 0)
    assert 0 <= row.detected_seconds < 5
    assert row.back_seconds >= 0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"events": ()}, "it was not noticed"),
        ({"ago": 9.0}, "noticed after more than 5 s"),
        ({"codes": (70, 70)}, "the run did not reach its end"),
        ({"losses": (3.0, 2.0, 1.5, 1.2500001)}, "the steps differ from those of the run without faults"),
        ({"losses": (3.0, 2.0, 1.5)}, "the steps differ from those of the run without faults"),
        ({"losses": (3.0, 2.0, 1.5, 1.3), "equality": "close"}, "the steps are far from"),
        (
            {"fault": Fault("term", 4), "events": (("stopped", {"step": 4}), ("resumed", {"step": 4}))},
            "exit code 0 instead of 75",
        ),
    ],
)
def test_a_fault_that_was_not(judge, changes, problem):
    assert judge(**changes).problem.startswith(problem)


def test_close_is_enough_where_the_micro_batch_changes(judge):
    fault, events = Fault("out_of_memory", 3), (("oom", {"cause": "no memory"}), ("resumed", {"step": 2}))
    row = judge(fault, (3.0, 2.0, 1.5, 1.2500001), events, equality="close")
    assert (row.problem, row.equality, row.cause) == ("", "close", "no memory")


def test_a_fault_that_never_happened_is_no_success(tmp_path):
    write_run(tmp_path / "reference", [1.0])
    write_run(tmp_path / "run", [1.0])
    drill = Drill("run", (KILL,), (), 1, "exact")
    (row,) = score(drill, tmp_path / "run", [Command(0, 0.0, 1.0)], tmp_path / "reference", 30.0)
    assert row.problem == "it never happened"


def test_the_scorecard_says_the_same_to_people_and_machines(judge, tmp_path):
    rows = [judge(events=())]
    text = as_text(rows)
    assert "kill@4:1" in text
    assert "FAILED: it was not noticed" in text
    card = json.loads(json.dumps(as_json(rows, {"run": tmp_path / "run"}, {"seed": 3})))
    assert (card["passed"], card["seed"], card["rows"][0]["fault"]) == (False, 3, "kill@4:1")
    assert card["runs"]["run"].keys() >= {"goodput", "ettr", "lost_steps"}


@pytest.fixture
def dataset(tmp_path):
    for name in ("manifest.json", "web/train/0.tar", "web/train/1.tar", "web/valid/0.tar"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(10000))
    return tmp_path / "data"


def test_shards_are_damaged_in_a_copy_refused_and_repaired(tmp_path, dataset, monkeypatch):
    (tmp_path / "drill").mkdir()
    ground = Ground(tmp_path / "drill", ["a=1"], (), dataset, 30.0)
    seen, codes = [], [65, 64, 0]

    def start(ground, name, more, variables=None):
        farm = ground.directory / "dataset"
        shard = farm / "web" / "train" / "1.tar"
        seen.append(sum(shard.read_bytes()) if shard.exists() else None)
        assert f"data.out={farm}" in more
        (ground.directory / f"{name}.log").write_text("distllm: block 3 is damaged\n")
        return Command(codes[len(seen) - 1], 0.0, 1.0)

    monkeypatch.setattr(drill_runs, "_start", start)
    monkeypatch.setattr(drill_runs, "compare", lambda *_: "bit-equal")
    rows = run_drill(ground, Drill("shards", (), SHARDS, 4, "exact"))
    assert [(row.fault, row.problem, row.exit_code) for row in rows] == [
        ("corrupt_shard", "", 65),
        ("missing_shard", "", 64),
    ]
    assert rows[0].cause == "block 3 is damaged"
    assert seen == [2, None, 0]
    assert all(sum(path.read_bytes()) == 0 for path in dataset.rglob("*.tar")), "the dataset is untouched"


@pytest.mark.slow
def test_servers_that_fail_are_drilled_in_one_run(tmp_path, dataset, monkeypatch):
    (tmp_path / "drill").mkdir()
    ground, ended = Ground(tmp_path / "drill", ["a=1"], (), dataset, 30.0), []
    kept = tmp_path / "drill" / "servers" / "wandb" / "offline-run-1" / "run-1.wandb"

    def start(ground, name, more, variables):
        assert variables["WANDB_BASE_URL"] == drill_runs.NOWHERE
        assert "logger.wandb=online" in more
        (url,) = [word.partition("=")[2] for word in more if word.startswith("data.out=http")]
        for _ in range(asked):
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{url}/web/train/0.tar", timeout=5) as got,
            ):
                got.read(5000)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(content)
        return Command(0, 0.0, 1.0)

    monkeypatch.setattr(drill_runs, "_start", start)
    monkeypatch.setattr(drill_runs, "compare", lambda *_: "bit-equal")
    monkeypatch.setattr(drill_runs, "adopt_orphans", lambda: ended.append("adopted"))
    monkeypatch.setattr(drill_runs, "end_descendants", lambda: ended.append("ended"))
    both = Drill("servers", (), ("tracker_down", "stalled_shard"), 4, "exact")
    asked, content = 2, b"history"
    tracker, stall = run_drill(ground, both)
    assert (tracker.fault, tracker.problem, tracker.cause) == (
        "tracker_down", "", "no server: kept in offline-run-1",
    )  # fmt: skip
    assert (stall.fault, stall.problem) == ("stalled_shard", "")
    assert stall.detected_seconds >= 0
    assert ended == ["adopted", "ended"]
    asked, content = 1, b""
    tracker, stall = run_drill(ground, both)
    assert tracker.problem == "the run kept nothing to upload later"
    assert stall.problem == "the shard was not requested again"
    asked = 0
    assert run_drill(ground, both)[1].problem == "the run fetched no shard"


def test_the_server_stalls_once_and_serves_only_this_machine(dataset):
    with drill_runs._stalling_server(dataset) as server:
        assert server.server_address[0] == "127.0.0.1"
        url = f"http://127.0.0.1:{server.server_port}/web/train/0.tar"
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert answer.headers["Content-Length"] == "10000"
            assert len(answer.read(5000)) == 5000
        assert server.asked_again_at is None
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert len(answer.read()) == 10000
        assert server.asked_again_at >= server.stalled_at


def test_a_run_is_started_again_until_it_is_done_or_refuses(tmp_path, monkeypatch):
    ground = Ground(tmp_path, [], (), tmp_path, 30.0)
    codes = iter([70, 75, 65, 0])
    monkeypatch.setattr(drill_runs, "_start", lambda *_: Command(next(codes), 0.0, 1.0))
    commands = drill_runs._until_done(ground, Drill("run", (KILL,), (), 4, "exact"), [], 9)
    assert [command.code for command in commands] == [70, 75, 65]
