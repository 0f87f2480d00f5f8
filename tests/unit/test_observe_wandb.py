import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from records import EVAL, STEP

from distllm.config.schema import Config, LoggerConfig
from distllm.observe.alerts import alert_of
from distllm.observe.ledger import Event, Ledger
from distllm.observe.open import build_sinks
from distllm.observe.tracked import TrackedRun, settle_run_id

OFFLINE = Config(name="tiny", seed=5, logger=LoggerConfig(wandb="offline", console=False))
ONLINE = replace(OFFLINE, logger=LoggerConfig(wandb="online", console=False))


@pytest.fixture(autouse=True)
def _private_wandb(tmp_path, monkeypatch):
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def use(sink):
    sink.log_step(STEP)
    sink.log_eval(EVAL)
    sink.log_sample(2, 8192, "<b>", " text & more")
    sink.log_note(2, "a note")
    sink.log_event(Event(1.0, 1, "done", {"step": 2}))


class FakeRun:
    """Stands for a wandb run; ``broken`` names the method that raises."""

    def __init__(self, broken=None):
        self.broken = broken
        self.calls = []
        self.logged = []

    def __getattr__(self, name):
        def call(*arguments, **_options):
            self.calls.append(name)
            if name == "log":
                self.logged += arguments
            if name == self.broken:
                raise ConnectionError("server is down")

        return call


def fake_wandb(monkeypatch, run, broken=None):
    inits = []

    def init(**options):
        inits.append(options)
        if broken == "init":
            raise RuntimeError("no API key")
        return run

    def table(columns, data):
        return tuple(data[0])

    module = SimpleNamespace(init=init, Settings=SimpleNamespace, Table=table)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return inits


def opened(directory, config=OFFLINE, attempt=1):
    """The sinks of an attempt, as the run builds them."""
    directory.mkdir(exist_ok=True)
    run = TrackedRun(config, directory, attempt, settle_run_id(directory, {}))
    return build_sinks(run, total_steps=10)


def closed(sinks):
    for sink in sinks:
        sink.close()


def test_a_run_keeps_its_id_over_attempts_and_copies_of_its_checkpoint(tmp_path):
    first = settle_run_id(tmp_path / "a", {})
    assert settle_run_id(tmp_path / "a", {}) == first
    assert settle_run_id(tmp_path / "b", {"tracker_run_id": first}) == first
    assert settle_run_id(tmp_path / "b", {"tracker_run_id": "another"}) == first
    assert settle_run_id(tmp_path / "c", {}) != first


def test_a_trial_of_a_sweep_is_the_run_its_agent_made_and_talks_to_the_server(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    inits = fake_wandb(monkeypatch, FakeRun())
    closed(opened(tmp_path / "a", ONLINE))
    assert [(o["id"], o["mode"]) for o in inits] == [("trial7", "online")]


def test_online_writes_offline_and_starts_the_upload_beside_the_run(tmp_path, monkeypatch):
    run, started = FakeRun(), []
    run.settings = SimpleNamespace(base_url="https://api.wandb.ai", sync_file="/wandb/run.wandb")
    inits = fake_wandb(monkeypatch, run)
    monkeypatch.setattr("distllm.observe.wandb_sink.start_sync", lambda *words: started.append(words))
    closed(opened(tmp_path / "a", ONLINE))
    assert [options["mode"] for options in inits] == ["offline"]
    assert started == [(Path("/wandb/run.wandb"), inits[0]["id"], "https://api.wandb.ai")]


def shown(run, name):
    return [(values["trainer/step"], values[name]) for values in run.logged if name in values]


def test_a_step_that_is_taken_again_appears_once(tmp_path, monkeypatch):
    run = FakeRun()
    fake_wandb(monkeypatch, run)

    def attempt(number, steps, first_eval):
        sinks = opened(tmp_path, attempt=number)
        for place in steps:
            for sink in sinks:
                sink.log_step(replace(STEP, step=place, attempt=number, loss=float(number)))
                if place >= first_eval and place % 2 == 0:
                    sink.log_eval(replace(EVAL, step=place, loss=float(number)))
                    sink.log_sample(place, 1, "a", f"{number}")
        closed(sinks)

    attempt(1, [1, 2, 3, 4, 3, 4, 5], first_eval=4)  # goes back to step 2, and is killed after step 5
    attempt(2, [3, 4, 5, 6], first_eval=4)
    assert shown(run, "train/loss") == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 1.0), (6, 2.0)]
    assert shown(run, "eval/causal_lm/loss") == [(4, 1.0), (6, 2.0)]
    assert shown(run, "eval/samples") == [(4, (4, 1, "a", "1")), (6, (6, 1, "a", "2"))]


def test_what_a_killed_attempt_had_not_delivered_is_shown_by_the_next(tmp_path, monkeypatch):
    run = FakeRun()
    fake_wandb(monkeypatch, run)
    first = opened(tmp_path)
    for step in range(1, 6):
        for sink in first:
            sink.log_step(replace(STEP, step=step, loss=float(step)))
    for sink in first:
        sink.log_eval(replace(EVAL, step=5))
        sink.log_sample(5, 1, "a", "b")
    closed(first)
    file = tmp_path / "wandb" / "offline-run-1" / f"run-{settle_run_id(tmp_path, {})}.wandb"
    file.parent.mkdir(parents=True)
    file.touch()
    run.logged.clear()
    delivered = {"step": 3, "eval": 0}
    monkeypatch.setattr("distllm.observe.wandb_sink.highest_shown", lambda path: delivered)
    second = opened(tmp_path, attempt=2)
    for step in (3, 4, 5, 6):  # goes on from step 2
        for sink in second:
            sink.log_step(replace(STEP, step=step, loss=0.0, attempt=2))
    closed(second)
    assert shown(run, "train/loss") == [(4, 4.0), (5, 5.0), (6, 0.0)]
    assert [step for step, _ in shown(run, "eval/causal_lm/loss")] == [5]
    assert shown(run, "eval/samples") == [(5, (5, 1, "a", "b"))]


@pytest.mark.parametrize(
    ("event", "exit_code", "preempted"),
    [
        (Event(1.0, 1, "done", {"step": 2}), 0, False),
        (Event(1.0, 1, "failed", {"error": "E"}), 70, False),
        (Event(1.0, 1, "stopped", {"why": "asked to stop"}), 75, True),
        (Event(1.0, 1, "stopped", {"why": "train.stop_at_step"}), 0, False),
        (Event(1.0, 1, "resumed", {"step": 2}), 70, False),
    ],
)
def test_the_run_ends_there_as_it_ends_here(tmp_path, monkeypatch, event, exit_code, preempted):
    run, endings = FakeRun(), []
    fake_wandb(monkeypatch, run)
    run.finish = lambda **options: endings.append(options)
    sinks = opened(tmp_path)
    for sink in sinks:
        sink.log_event(event)
    closed(sinks)
    assert endings == [{"exit_code": exit_code}]
    assert ("mark_preempting" in run.calls) == preempted


def test_a_run_that_was_not_shown_before_is_shown_from_where_it_stands(tmp_path, monkeypatch):
    run = FakeRun()
    fake_wandb(monkeypatch, run)
    silent = opened(tmp_path, replace(OFFLINE, logger=LoggerConfig(console=False)))
    silent[0].log_step(replace(STEP, step=5))
    sinks = opened(tmp_path, attempt=2)
    for sink in sinks:
        sink.log_step(replace(STEP, step=3, loss=2.0))
    closed(sinks)
    assert shown(run, "train/loss") == [(3, 2.0)]


@pytest.mark.parametrize("broken", ["init", "define_metric", "log", "alert", "finish"])
def test_failing_wandb_warns_once_and_training_goes_on(tmp_path, monkeypatch, caplog, broken):
    run = FakeRun(broken)
    fake_wandb(monkeypatch, run, broken)
    with caplog.at_level(logging.WARNING):
        sinks = opened(tmp_path)
        for sink in sinks:
            for _ in range(3):
                use(sink)
            sink.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert ("no API key" if broken == "init" else "server is down") in caplog.text
    assert run.calls.count(broken) == (0 if broken == "init" else 1)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 13


def test_uninstalled_wandb_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    sinks = opened(tmp_path)
    for sink in sinks:
        use(sink)
    closed(sinks)
    assert "continues without it" in caplog.text
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 5


@pytest.mark.slow
def test_unreachable_server_does_not_stop_a_trial(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("distllm.observe.wandb_sink.INIT_SECONDS", 3.0)
    monkeypatch.setattr("distllm.observe.wandb_sink.FINISH_SECONDS", 1.0)
    sinks = opened(tmp_path, ONLINE)
    for sink in sinks:
        use(sink)
    closed(sinks)
    assert "Weights & Biases failed" in caplog.text


def test_the_attempt_after_a_hang_tells_of_it(tmp_path, monkeypatch):
    run = FakeRun()
    fake_wandb(monkeypatch, run)
    ledger = Ledger(tmp_path / "ledger.jsonl", 1)
    ledger.event("attempt", host="a", pid=1, world_size=2)
    ledger.event("hang", seconds=31.0)
    closed(opened(tmp_path, attempt=2))
    assert run.calls.count("alert") == 1
    closed(opened(tmp_path, attempt=3))
    assert run.calls.count("alert") == 1


@pytest.mark.parametrize(
    ("kind", "fields", "title"),
    [
        ("skipped", {"reason": "non_finite", "loss": "nan"}, "NaN"),
        ("skipped", {"reason": "grad_norm_spike", "loss": 3.0}, "Spike"),
        ("rewind", {"to": 3, "why": "x"}, "Rewind"),
        ("hang", {"seconds": 3}, "Stall"),
        ("straggler", {"rank": 3}, "Stall"),
        ("save_failed", {"why": "no space"}, "Disk"),
        ("oom", {"cause": "x"}, "Memory"),
        ("corruption", {"what": "x"}, "Corruption"),
        ("killed", {"rank": 1, "signal": "SIGKILL"}, "Killed"),
        ("failed", {"error": "E", "cause": "x"}, "Failed"),
        ("stopped", {"why": "asked to stop"}, "Preempted"),
        ("stopped", {"why": "train.stop_at_step"}, None),
        ("done", {}, "Done"),
        ("saved", {}, None),
        ("progress", {}, None),
    ],
)
def test_events_worth_waking_somebody_for(kind, fields, title):
    alert = alert_of(Event(1.0, 1, kind, {"step": 7, **fields}))
    assert (alert.title if alert else None) == title
    if title in ("NaN", "Spike", "Disk"):
        assert "step 7" in alert.text


def test_importing_the_sinks_imports_neither_wandb_nor_rich_nor_torch():
    code = (
        "import sys, distllm.observe.open, distllm.observe.wandb_sink, distllm.observe.console,"
        "distllm.observe.scalar_sinks;"
        "print(sorted({'wandb', 'rich', 'torch', 'mlflow', 'trackio'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout.strip() == "[]"
