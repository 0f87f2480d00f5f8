import json
import logging
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from distllm.config.schema import Config, LoggerConfig
from distllm.observe.metrics import EvalRecord, StepRecord
from distllm.observe.sinks import build_sinks
from distllm.observe.wandb_sink import WandbSink

OFFLINE = Config(name="tiny", seed=5, logger=LoggerConfig(wandb="offline", project="probe"))
ONLINE = replace(OFFLINE, logger=LoggerConfig(wandb="online", project="probe"))
STEP = StepRecord(
    step=2,
    tokens=8192,
    loss=7.5,
    lr=1e-3,
    grad_norm=2.5,
    tokens_per_second=1000.0,
    mfu=0.5,
    data_wait_fraction=0.25,
    overhead_fraction=0.004,
    memory_bytes=1024,
    eta_seconds=9.0,
    skipped_steps=1,
    attempt=1,
    batch_digest="1f3a",
)
EVAL = EvalRecord(step=2, tokens=8192, loss=7.0, perplexity=1096.6, bits_per_byte=2.5, seconds=1.0)


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
    sink.close()


def records(run_dir):
    """Every record of every offline run below ``run_dir``, as wandb's own reader prints them."""
    for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        yield from map(json.loads, shown.splitlines())


def of_kind(found, kind):
    return [record[kind] for record in found if record["type"] == kind]


def test_offline_run_holds_what_was_logged(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    use(WandbSink(OFFLINE, run_dir))
    found = list(records(run_dir))

    (run, *_) = of_kind(found, "run")
    assert (run["project"], run["display_name"]) == ("probe", "tiny")
    assert run["config"]["update"]["optim"]["name"] == "adamw"

    axes = {m.get("name") or m["glob_name"]: m.get("step_metric") for m in of_kind(found, "metric")}
    assert axes == {
        "trainer/step": None,
        "trainer/tokens": None,
        "train/*": "trainer/tokens",
        "eval/*": "trainer/tokens",
        "eval/loss": "trainer/tokens",
        "perf/*": "trainer/step",
    }

    step, evaluation, sample = (h["item"] for h in of_kind(found, "history"))
    for item in (step, evaluation, sample):
        assert (item["trainer/step"], item["trainer/tokens"]) == (2, 8192)
    assert {key: value for key, value in step.items() if key.split("/")[0] in ("train", "perf")} == {
        "train/loss": 7.5,
        "train/lr": 1e-3,
        "train/grad_norm": 2.5,
        "train/skipped_steps": 1,
        "perf/tokens_per_second": 1000.0,
        "perf/mfu": 0.5,
        "perf/data_wait_fraction": 0.25,
        "perf/overhead_fraction": 0.004,
        "perf/memory_bytes": 1024,
        "perf/eta_seconds": 9.0,
    }
    assert (evaluation["eval/loss"], evaluation["eval/bits_per_byte"]) == (7.0, 2.5)
    (page,) = run_dir.glob("wandb/offline-run-*/files/media/html/eval/*.html")
    assert "<pre>&lt;b&gt; text &amp; more</pre>" in page.read_text()
    assert [leave["exit_code"] for leave in of_kind(found, "exit")] == [0]


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

    module = SimpleNamespace(init=init, Settings=SimpleNamespace, Html=lambda text: text)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return inits


def test_resumed_run_keeps_its_id(tmp_path, monkeypatch):
    inits = fake_wandb(monkeypatch, FakeRun())
    for directory in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        WandbSink(ONLINE, directory)
    first, second, other = (options["id"] for options in inits)
    assert first == second != other
    assert {options["resume"] for options in inits} == {"allow"}


def shown(run, name):
    return [(values["trainer/step"], values[name]) for values in run.logged if name in values]


def test_a_step_that_is_taken_again_appears_once(tmp_path, monkeypatch):
    run = FakeRun()
    fake_wandb(monkeypatch, run)

    def attempt(number, steps, first_eval):
        sinks = build_sinks(OFFLINE, tmp_path, attempt=number, rank=0, total_steps=10)
        for place in steps:
            for sink in sinks:
                sink.log_step(replace(STEP, step=place, attempt=number, loss=float(number)))
                if place >= first_eval and place % 2 == 0:
                    sink.log_eval(replace(EVAL, step=place, loss=float(number)))
                    sink.log_sample(place, 1, "a", f"{number}")

    attempt(1, [1, 2, 3, 4, 3, 4, 5], first_eval=4)  # goes back to step 2, and is killed after step 5
    attempt(2, [3, 4, 5, 6], first_eval=4)
    assert shown(run, "train/loss") == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 1.0), (6, 2.0)]
    assert shown(run, "eval/loss") == [(4, 1.0), (6, 2.0)]
    assert shown(run, "eval/sample") == [(4, "<pre>a1</pre>"), (6, "<pre>a2</pre>")]


def test_a_run_that_was_not_shown_before_is_shown_from_where_it_stands(tmp_path, monkeypatch):
    run = FakeRun()
    fake_wandb(monkeypatch, run)
    silent = build_sinks(replace(OFFLINE, logger=LoggerConfig()), tmp_path, attempt=1, rank=0, total_steps=10)
    silent[0].log_step(replace(STEP, step=5))
    for sink in build_sinks(OFFLINE, tmp_path, attempt=2, rank=0, total_steps=10):
        sink.log_step(replace(STEP, step=3, loss=2.0))
    assert shown(run, "train/loss") == [(3, 2.0)]


@pytest.mark.parametrize("broken", ["init", "define_metric", "log", "finish"])
def test_failing_wandb_warns_once_and_training_goes_on(tmp_path, monkeypatch, caplog, broken):
    run = FakeRun(broken)
    fake_wandb(monkeypatch, run, broken)
    with caplog.at_level(logging.WARNING):
        sink = WandbSink(ONLINE, tmp_path)
        for _ in range(3):
            use(sink)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert ("no API key" if broken == "init" else "server is down") in caplog.text
    assert run.calls.count(broken) == (0 if broken == "init" else 1)


def test_uninstalled_wandb_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    sinks = build_sinks(OFFLINE, tmp_path, attempt=1, rank=0, total_steps=10)
    for sink in sinks:
        use(sink)
    assert "goes on without it" in caplog.text
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 5


def test_unreachable_server_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("distllm.observe.wandb_sink.INIT_SECONDS", 3.0)
    monkeypatch.setattr("distllm.observe.wandb_sink.FINISH_SECONDS", 1.0)
    use(WandbSink(ONLINE, tmp_path))
    assert "Weights & Biases failed" in caplog.text


def test_importing_the_sinks_imports_neither_wandb_nor_rich_nor_torch():
    code = (
        "import sys, distllm.observe.sinks, distllm.observe.wandb_sink, distllm.observe.console;"
        "print(sorted({'wandb', 'rich', 'torch'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout.strip() == "[]"
