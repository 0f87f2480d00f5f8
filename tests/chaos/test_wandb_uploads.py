"""``logger=wandb_online`` with a server: all of a run arrives, once, whatever happens to run and server."""

import logging
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import wandb
import wandb_server
from records import EVAL, STEP

from distllm.config.schema import Config, LoggerConfig
from distllm.observe.open import build_sinks
from distllm.observe.sync import not_uploaded
from distllm.observe.tracked import TrackedRun

pytestmark = [pytest.mark.dist, pytest.mark.slow]
ONLINE = Config(name="tiny", logger=LoggerConfig(wandb="online", console=False, group="arms"))
FACTS = ("train/loss", "train/lr", "perf/tokens_per_second", "perf/mfu")


def rows(run, name):
    """(step, value) of each row of the history that has the name."""
    return [(row["trainer/step"], row[name]) for row in run.history if name in row]


def wait_for(what, seconds=60):
    """Wait until ``what()`` holds."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.prepare(tmp_path_factory.mktemp("data"))


def overrides(data, root, *more):
    """Of a tiny run of one rank in ``root``."""
    return tiny.overrides(data, f"runs_dir={root}/runs", "engine=local", "cluster.procs_per_node=1", *more)


def test_a_run_that_was_killed_and_restarted_is_one_whole_run(data, tmp_path):
    more = (
        "logger=wandb_online", "logger.group=arms", "train.max_steps=10", "chaos.faults=[kill@7:0]",
        "cluster.max_restarts=1",
    )  # fmt: skip
    with wandb_server.serve() as server:
        done = tiny.distllm("train", *overrides(data, tmp_path, *more), **server.environment(tmp_path))
        assert done.returncode == 0, done.stderr
        ((run_id, run),) = server.runs.items()
        wait_for(lambda: run.exits == [1, 0])  # the attempt that was killed, and the one that is done
    recorded = tiny.steps(tmp_path)
    assert (tmp_path / "runs" / "tiny" / "wandb-run-id").read_text().strip() == run_id
    for name in FACTS:
        assert [step for step, _ in rows(run, name)] == list(range(1, 11))
    assert all(loss == pytest.approx(recorded[step]["loss"]) for step, loss in rows(run, "train/loss"))
    assert [step for step, _ in rows(run, "eval/causal_lm/loss")] == [0, 4, 8, 10]
    assert [step for step, _ in rows(run, "eval/samples")] == [0, 4, 8, 10]
    numbers = [row["_step"] for row in run.history]
    assert numbers == sorted(set(numbers))
    assert run.replaced == []
    assert run.complete
    assert [title for title, _ in run.alerts if title != "Stall"] == ["Killed", "Done"]
    named = [run.fields[name] for name in ("displayName", "groupName", "jobType")]
    assert named == ["tiny", "arms", "causal_lm"]
    assert run.config["train"]["max_steps"] == run.config["derived"]["max_steps"] == 10
    assert run.config["environment"]["packages_digest"]
    assert run.summary["trainer/step"] == 10
    assert run.summary["eval/causal_lm/loss"]["min"] == pytest.approx(
        min(loss for _, loss in rows(run, "eval/causal_lm/loss"))
    )
    committed = {a["artifactTypeName"] for a in server.artifacts.values() if a["state"] == "COMMITTED"}
    assert committed == {"dataset", "tokenizer", "model", "evaluation", "run_table"}
    assert {server.artifacts[key]["artifactTypeName"] for key in server.used} == {"dataset", "tokenizer"}
    assert f"Weights & Biases: {server.url}/team/distllm/runs/{run_id}" in done.stdout
    assert re.search("Weights & Biases: (all of it is uploaded|the upload goes on)", done.stdout)
    assert "wandb:" not in done.stdout + done.stderr


def test_an_agent_runs_the_trials_of_a_sweep(data, tmp_path):
    more = ("logger=wandb_online", "train.max_steps=2", "eval=none", "optim.lr=1e-4..1e-2")
    made = tiny.distllm("sweep", *overrides(data, tmp_path, *more), f"sweep.out={tmp_path}/sweep.yaml")
    assert made.returncode == 0, made.stderr
    with wandb_server.serve() as server:
        server.trials.append({"optim.lr": 0.003})
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = tiny.environment(PATH=path, **server.environment(tmp_path))
        for words in (["sweep", "--project", "p", "sweep.yaml"], ["agent", "--count", "1", "team/p/s1"]):
            command = [sys.executable, "-m", "wandb", *words]
            subprocess.run(
                command, cwd=tmp_path, env=environment, check=True, timeout=120, capture_output=True
            )
        ((run_id, run),) = server.runs.items()
    assert (run_id, run.fields["sweep"], run.exits) == ("trial0", "s1", [0])
    assert run.config["optim"]["lr"] == 0.003
    assert [step for step, _ in rows(run, "train/loss")] == [1, 2]
    assert (tmp_path / "runs" / "tiny-trial0").is_dir()


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start the sinks of an attempt; the environment is a server's."""

    def begin(server, key=wandb_server.KEY):
        monkeypatch.delenv("WANDB_SILENT", raising=False)
        for name, value in server.environment(tmp_path, key).items():
            monkeypatch.setenv(name, value)
        return build_sinks(TrackedRun(ONLINE, tmp_path, 1, "a1"), 100)

    wandb.teardown()  # its settings, which name the server, outlive a run
    yield begin
    wandb.teardown()


def log(sinks, steps):
    """Log steps; return the longest time that one took."""
    longest = 0.0
    for step in steps:
        began = time.monotonic()
        for sink in sinks:
            sink.log_step(replace(STEP, step=step))
        longest = max(longest, time.monotonic() - began)
    return longest


def close(sinks):
    for sink in sinks:
        sink.log_eval(replace(EVAL, step=40))
        sink.close()


def test_a_server_that_goes_and_comes_back_misses_nothing(start):
    with ExitStack() as first:
        server = first.enter_context(wandb_server.serve())
        sinks = start(server)
        log(sinks, range(1, 11))
        wait_for(lambda: server.runs["a1"].fields)
        first.close()
        assert log(sinks, range(11, 31)) < 1.0
        time.sleep(2)
    with wandb_server.serve(server, port=int(server.url.rpartition(":")[2])):
        log(sinks, range(31, 41))
        close(sinks)
        wait_for(lambda: server.runs["a1"].complete)
    assert [step for step, _ in rows(server.runs["a1"], "train/loss")] == list(range(1, 41))
    assert server.runs["a1"].replaced == []


def test_a_server_that_is_not_there_is_said_once_and_waited_for(tmp_path, start, caplog):
    with wandb_server.serve() as server:
        pass
    with caplog.at_level(logging.WARNING):
        sinks = start(server)
        assert log(sinks, range(1, 40)) < 1.0
        wait_for(lambda: (log(sinks, [40]), caplog.records)[1])
        close(sinks)
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"takes nothing ({server.url}: [Errno 111] Connection refused); training goes on" in said
    assert not_uploaded(tmp_path / "wandb", "a1")
    with wandb_server.serve(server, port=int(server.url.rpartition(":")[2])):
        wait_for(lambda: server.runs["a1"].complete)
    assert [step for step, _ in rows(server.runs["a1"], "train/loss")] == list(range(1, 41))


def test_a_wrong_key_is_said_with_what_helps(start, caplog):
    with wandb_server.serve() as server, caplog.at_level(logging.WARNING):
        sinks = start(server, key="f" * 40)
        wait_for(lambda: (log(sinks, [1]), caplog.records)[1])
        close(sinks)
        assert not server.runs
    (said,) = [record.getMessage() for record in caplog.records]
    assert "user is not logged in" in said
    assert "wandb login" in said


def test_a_slow_server_slows_no_step(start):
    with wandb_server.serve() as server:
        server.delay = 10.0
        sinks = start(server)
        longest = log(sinks, range(1, 41))
        began = time.monotonic()
        close(sinks)
        assert time.monotonic() - began < 15
    assert longest < 0.5
