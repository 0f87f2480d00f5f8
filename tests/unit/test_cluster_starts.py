"""What became of starts: history, outcome, health, the first error, the hostfile and the leash."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from distllm.cluster import hostfile
from distllm.cluster.control import Control
from distllm.cluster.diagnose import classify, first_error
from distllm.cluster.fence import Fence
from distllm.cluster.health import MARK, Listener, NodeCheck, talk
from distllm.cluster.health_report import NodeReport, bad_nodes, read_reports
from distllm.cluster.history import History
from distllm.cluster.hostfile import chosen_slots, include_of, read_hostfile
from distllm.cluster.leash import LOST_EXIT, Leash
from distllm.cluster.outcome import Outcome, Watch, is_done, rank_codes, write_exit_code
from distllm.cluster.slurm import QueuedJob
from distllm.cluster.state import state_of
from distllm.config.compose import compose
from distllm.config.problems import Problems
from distllm.observe.ledger import Ledger


def checkpoint(run, step):
    (run / "checkpoints" / f"step-{step:09d}").mkdir(parents=True)


def test_history_counts_only_ends_without_progress(tmp_path):
    history = History(tmp_path)
    assert history.starts() == []
    for step in (0, 10, 10):
        if step and not (tmp_path / "checkpoints" / f"step-{step:09d}").exists():
            start = history.begin("1", ["n1"], "sub")
            checkpoint(tmp_path, step)
        else:
            start = history.begin("1", ["n1"], "sub")
        history.end(start, "failed", "boom")
    assert [(start.before, start.step) for start in history.starts()] == [(0, 0), (0, 10), (10, 10)]
    assert history.stalls_in_a_row("sub") == 1, "the second start had saved something"
    history.end(history.begin("1", ["n2"], "sub"), "failed", "boom")
    assert history.stalls_in_a_row("sub") == 2
    history.begin("1", ["n2"], "sub")
    assert history.stalls_in_a_row("sub") == 0, "what SLURM ended is no failure of the run"
    assert history.restarts("sub") == 4
    for why, stalls in (("asked to stop: the time limit is near", 1), ("asked to stop: to queue again", 0)):
        history.end(history.begin("1", ["n2"], "sub"), "again", why)
        assert history.stalls_in_a_row("sub") == stalls, "a person may ask as often as wanted"
    assert history.stalls_in_a_row("another") == 0


def test_history_survives_a_torn_line_and_keeps_bad_nodes(tmp_path):
    history = History(tmp_path)
    history.begin("1", ["n1", "n2"], "sub")
    with (tmp_path / "slurm" / "starts.jsonl").open("a") as stream:
        stream.write('{"kind": "end", "num')
    assert [start.nodes for start in history.starts()] == [("n1", "n2")]
    history.exclude({"n1": "hot"})
    history.exclude({"n2": "down"})
    history.exclude({})
    assert history.excluded() == {"n1": "hot", "n2": "down"}


def told(run, attempt, kind, **fields):
    Ledger(run / "ledger.jsonl", attempt).event(kind, **fields)


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("done", {"step": 8}, Outcome("done", "step 8", 0)),
        ("stopped", {"step": 4, "why": "asked to stop: the time limit is near"},
         Outcome("again", "asked to stop: the time limit is near", 75)),
        ("stopped", {"step": 4, "why": "asked to stop"}, Outcome("stopped", "asked to stop, at step 4", 75)),
        ("failed", {"error": "X", "cause": "y"}, Outcome("failed", "the launcher ended with 143: X: y", 70)),
    ],
)  # fmt: skip
def test_outcome_is_what_the_ledger_says(tmp_path, kind, fields, expected):
    told(tmp_path, 1, "done", step=99)
    watch = Watch(tmp_path)
    assert not watch.has_ended()
    told(tmp_path, 1, "stopped", step=1, why="an earlier start that lives on")
    assert not watch.has_ended()
    told(tmp_path, 2, kind, **fields)
    assert watch.has_ended()
    assert watch.outcome(143, tmp_path / "exits") == expected


def test_a_rank_that_can_never_succeed_is_believed(tmp_path, monkeypatch):
    exits = tmp_path / "exits"
    exits.mkdir()
    monkeypatch.setenv("DISTLLM_EXITS", str(exits))
    for rank, code in (("0", 70), ("3", 65)):
        monkeypatch.setenv("RANK", rank)
        write_exit_code(code)
    (exits / "notes").write_text("1")
    assert rank_codes(exits) == {0: 70, 3: 65}
    outcome = Watch(tmp_path).outcome(1, exits)
    assert (outcome.kind, outcome.code) == ("hopeless", 65)
    assert "rank 3 ended with 65" in outcome.why


def test_a_start_that_stands_still_has_ended_and_failed(tmp_path):
    watch = Watch(tmp_path)
    told(tmp_path, 1, "hang", seconds=11.0, cause="rank 1 on n2 hangs", hosts=["n2"])
    assert watch.has_ended()
    said = "the run hung: rank 1 on n2 hangs"
    assert watch.outcome(70, tmp_path / "exits") == Outcome("failed", said, 70, "n2")
    told(tmp_path, 1, "failed", error="LaunchError", cause="rank 0 lost another rank")
    assert watch.outcome(70, tmp_path / "exits").why == said, "the rest is a consequence"
    told(tmp_path, 1, "hang", seconds=11.0, cause="all ranks wait", hosts=[])
    assert watch.outcome(70, tmp_path / "exits").host is None


def test_done_is_the_last_word_only(tmp_path):
    assert not is_done(tmp_path)
    told(tmp_path, 1, "done", step=8)
    assert is_done(tmp_path)
    told(tmp_path, 2, "attempt", host="n1", pid=1, world_size=1)
    assert not is_done(tmp_path)


def test_state_of_a_run_from_both_sides(tmp_path):
    assert state_of(tmp_path, []).state == "new"
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "job").write_text("12\n")
    record = {"kind": "step", "step": 5, "eta_seconds": 60.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + '\n{"kind": "note", "te')
    (tmp_path / "explain.json").write_text(json.dumps({"max_steps": {"value": 8}}))
    waiting = state_of(tmp_path, [QueuedJob("12", "PENDING", "Resources", "", "1:00", "x")])
    assert (waiting.state, waiting.reason, waiting.step, waiting.max_steps) == ("pending", "Resources", 5, 8)
    assert waiting.eta_seconds == 60.0
    told(tmp_path, 1, "attempt", host="n1", pid=1, world_size=1)
    assert state_of(tmp_path, []).state == "lost"
    owner = tmp_path / "owner.json"
    owner.write_text("{}")
    assert state_of(tmp_path, []).state == "running", "its lease is fresh"
    os.utime(owner, (0, 0))
    assert state_of(tmp_path, []).state == "lost"
    told(tmp_path, 1, "failed", error="E", cause="c")
    assert state_of(tmp_path, []).state == "failed"
    Control(tmp_path).ask("cancel", "distllm cancel")
    assert state_of(tmp_path, []).state == "cancelled"


def report(node, *problems, together=()):
    return NodeReport(node, problems, tuple(together), {})


@pytest.mark.parametrize(
    ("reports", "bad"),
    [
        ([report("a"), report("b")], set()),
        ([report("a"), report("b", "hot")], {"b"}),
        ([report("a", together=["x"]), report("b", "hot"), report("c", together=["x"])], {"b"}),
        ([report("a"), report("b", together=["far"]), report("c")], {"b"}),
        ([report("a"), report("b", together=["far"]), report("c", together=["far"])], {"a"}),
        ([report("a"), report("b", together=["far"])], {"b"}),
    ],
)
def test_which_nodes_are_to_blame(reports, bad):
    assert set(bad_nodes(reports)) == bad


def test_a_silent_node_is_bad():
    good = {"node": "n1", "problems": [], "shared": [], "together": []}
    good["figures"] = {"memory_bytes_per_second": 2**30}
    output = f"noise\n0: {MARK}{json.dumps(good)}\n{MARK}not json\n"
    reports = read_reports(output, ["n1", "n2"])
    assert str(reports[0]) == "n1: good (memory 1.0 GiB/s)"
    assert bad_nodes(reports) == {"n2": "did not finish the health check"}


def test_a_node_looks_at_its_disk_and_memory(tmp_path):
    check = NodeCheck(compose(["cluster.health.min_free_bytes=1"]), tmp_path)
    check.local()
    assert check.problems == []
    assert check.figures["memory_bytes_per_second"] > 2**20
    greedy = [
        "cluster.health.min_free_bytes=900TiB",
        "cluster.health.min_memory_bandwidth=900TiB",
        "cluster.device=cuda",
    ]
    check = NodeCheck(compose(greedy), tmp_path)
    check.local()
    assert "free in the run directory" in check.shared[0], "no node's own fault"
    assert sum("free in the" in problem for problem in check.problems) == 1
    assert any("in memory" in problem for problem in check.problems)


def test_two_nodes_talk():
    listener = Listener(0)
    try:
        port = listener._server.getsockname()[1]
        skew, bandwidth = talk("127.0.0.1", port, time.monotonic() + 60)
    finally:
        listener.close()
    assert abs(skew) < 5
    assert bandwidth > 2**16
    with pytest.raises(OSError, match="refused"):
        talk("127.0.0.1", port, time.monotonic())


def test_a_first_node_out_of_reach_or_with_another_clock_is_told(tmp_path, monkeypatch):
    check = NodeCheck(compose([]), tmp_path)
    check.network("127.0.0.1", 9, time.monotonic())
    assert "cannot reach the first node" in check.suspects_head[0]
    monkeypatch.setattr("distllm.cluster.health.talk", lambda *_: (-60.0, 1.0))
    check = NodeCheck(compose([]), tmp_path)
    check.network("n1", 9, 0.0)
    assert len(check.suspects_head) == 2
    assert "-60.0 s" in check.suspects_head[0]


def test_the_earliest_error_that_is_no_consequence(tmp_path):
    lost = "Traceback (most recent call last):\n  File x\nRuntimeError: Connection closed by peer [n2]"
    (tmp_path / "rank-0.log").write_text(lost)
    (tmp_path / "rank-1.log").write_text("step 1\n")
    assert first_error(tmp_path).cause == "a peer was lost"
    (tmp_path / "rank-1.log").write_text("step 1\nTraceback (most recent call last):\n  x\nMemoryError")
    found = first_error(tmp_path)
    assert (found.rank, found.cause) == (1, "out of memory")
    (tmp_path / "rank-2.log").write_text("distllm: 2 problems in the configuration:\n1. x\n")
    assert classify("2 problems in the configuration")[0] == "the configuration"
    assert classify("something else")[0] == "an error"
    empty = tmp_path / "none"
    empty.mkdir()
    assert first_error(empty) is None


def test_hostfile(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# mine\nlocalhost slots=2   # here\n\n127.0.0.1 slots=2\n")
    problems = Problems()
    hosts = read_hostfile(path, problems)
    assert hosts == {"localhost": 2, "127.0.0.1": 2}
    assert chosen_slots(hosts, "localhost", "", problems) == {"localhost": (0, 1)}
    assert chosen_slots(hosts, "", "localhost", problems) == {"127.0.0.1": (0, 1)}
    assert not problems.found
    assert chosen_slots(hosts, "localhost", "localhost", problems) == {}
    assert [problem.cause for problem in problems.found] == ["no host is left"]
    missing = Problems()
    assert read_hostfile(tmp_path / "none", missing) == {}
    assert "cannot read" in missing.found[0].cause


@pytest.mark.slow
@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        ("n1@n2:0,2", "", {"n1": (0, 1, 2, 3), "n2": (0, 2)}),
        ("n[1-3]:0-1,3", "", {"n1": (0, 1, 3), "n2": (0, 1, 3), "n3": (0, 1, 3)}),
        ("n2:1@n2:3,1", "", {"n2": (1, 3)}),
        ("", "n1:0@n[2-3]", {"n1": (1, 2, 3)}),
        ("n1,n3", "n1:3@n3:0", {"n1": (0, 1, 2), "n3": (1, 2, 3)}),
    ],
)
def test_slots_are_chosen_as_deepspeed_chooses_them(monkeypatch, include, exclude, chosen):
    from deepspeed.launcher.runner import parse_inclusion_exclusion

    monkeypatch.setattr(hostfile, "resolves", lambda _: True)
    pool = dict.fromkeys(("n1", "n2", "n3"), 4)
    assert chosen_slots(pool, include, exclude, Problems()) == chosen
    found = parse_inclusion_exclusion(pool, include_of(chosen), "")
    assert {host: tuple(slots) for host, slots in found.items()} == chosen


HELD = """
import sys, time
from pathlib import Path
from distllm.cluster.fence import Fence
from distllm.cluster import leash
leash.BEAT_SECONDS, leash.GRACE_SECONDS = 0.1, 0.2
leash.follow_launcher(Path(sys.argv[1]), Fence("line", 1), lost_seconds=float(sys.argv[2]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("event", ["let go", "a later start", "silence"])
def test_a_rank_ends_when_its_launcher_does(tmp_path, event):
    leash = Leash(tmp_path, Fence("line", 1))
    leash.beat()
    words = [sys.executable, "-c", HELD, str(tmp_path), "1.0" if event == "silence" else "60"]
    rank = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert rank.stdout.readline() == "held\n"
        if event == "let go":
            leash.end_ranks()
        elif event == "a later start":
            Leash(tmp_path, Fence("line", 2)).beat()
        assert rank.wait(30) == (-signal.SIGTERM if event == "silence" else LOST_EXIT)
    finally:
        rank.kill()
        rank.wait()
        rank.stdout.close()
