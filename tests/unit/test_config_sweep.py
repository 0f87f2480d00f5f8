import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from distllm.commands.sweep import run
from distllm.config.compose import compose
from distllm.config.sweep import sweep
from distllm.config.yaml import from_yaml
from distllm.errors import ConfigProblems
from distllm.observe.names import eval_values, reliability_values, step_values
from distllm.observe.workspace import layout


def swept(*words, method="bayes", metric="", goal="minimize"):
    return sweep(words, method=method, metric=metric, goal=goal)


@pytest.mark.parametrize(
    ("word", "spec"),
    [
        ("optim.lr=1e-4..1e-2", {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}),
        ("optim.beta1=0.8..0.95", {"distribution": "uniform", "min": 0.8, "max": 0.95}),
        ("optim.weight_decay=0..0.5", {"distribution": "uniform", "min": 0.0, "max": 0.5}),
        ("seed=1..9", {"distribution": "int_uniform", "min": 1, "max": 9}),
        (
            "train.tokens_per_step=4k..64k",
            {"distribution": "q_log_uniform_values", "min": 4000, "max": 64000},
        ),
        ("schedule.name=*", {"values": ["constant", "linear", "cosine", "wsd", "inverse_sqrt"]}),
        ("engine.compile=*", {"values": [True, False]}),
        ("model=llama-tiny,llama-10m", {"values": ["llama-tiny", "llama-10m"]}),
        ("engine.zero_stage=0,2", {"values": [0, 2]}),
    ],
)
def test_what_varies_follows_from_the_schema(word, spec):
    assert swept(word)["parameters"] == {word.partition("=")[0]: spec}


def test_everything_else_is_what_a_trial_is_started_with():
    found = swept(
        "experiment=demo", "optim.lr=1e-4..1e-2", "data.paths=[a,b]", "name=mine", metric="x", goal="maximize"
    )
    assert found["metric"] == {"name": "x", "goal": "maximize"}
    assert found["command"] == [
        "distllm", "train", "experiment=demo", "data.paths=[a,b]", "name=mine", "logger.wandb=online",
        "name=mine-${oc.env:WANDB_RUN_ID}", "${args_no_hyphens}",
    ]  # fmt: skip
    assert swept("seed=1,2")["metric"]["name"] == "eval/causal_lm/loss"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["experiment=demo"], "nothing is to be varied"),
        (["optim.lr=1e-2..1e-4"], "is not a range"),
        (["optim.beta1=0.5,1.5"], "above the greatest"),
        (["optim.lr=*"], "lists no choices"),
        (["optim.lrr=1,2"], "did you mean 'optim.lr'"),
        (["model=llama-tiny,nothing"], "nothing"),
        (["seed=a..b"], "expected a whole number|is not a count"),
    ],
)
def test_what_a_trial_would_refuse_is_refused_now(words, told):
    with pytest.raises(ConfigProblems, match=told):
        swept(*words)


def test_a_grid_needs_values():
    with pytest.raises(ConfigProblems, match="a grid has no step"):
        swept("optim.lr=1e-4..1e-2", method="grid")
    assert swept("seed=1,2", method="grid")["method"] == "grid"


@pytest.mark.slow
def test_the_agent_starts_trials_each_under_its_own_name(tmp_path, capsys, monkeypatch):
    """Weights & Biases' own agent makes the command lines; what they compose to is looked at here."""
    from wandb import wandb_agent

    out, started = tmp_path / "sweep.yaml", []
    assert run(["experiment=demo", "optim.lr=1e-4..1e-2", "schedule.name=*", f"sweep.out={out}"]) == 0
    assert f"wandb sweep {out}" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "")  # the agent sets them for good
        monkeypatch.delenv(name)
    monkeypatch.setattr(wandb_agent, "AgentProcess", lambda **told: started.append(told) or SimpleNamespace())
    agent = wandb_agent.Agent.__new__(wandb_agent.Agent)  # without a server
    agent._sweep_command, agent._function, agent._run_processes = from_yaml(out)["command"], None, {}
    agent._in_jupyter = agent._forward_signals = False
    arguments = {"optim.lr": {"value": 0.0015}, "schedule.name": {"value": "linear"}}
    for trial in ("abc123", "def456"):
        agent._command_run({"run_id": trial, "program": "distllm", "args": arguments})
    for trial, told in zip(("abc123", "def456"), started, strict=True):
        program, verb, *words = told["command"]
        assert (program, verb) == ("distllm", "train")
        assert told["env"]["WANDB_RUN_ID"] == trial
        monkeypatch.setenv("WANDB_RUN_ID", trial)
        config = compose(words)
        assert (config.name, config.optim.lr, config.schedule.name) == (f"demo-{trial}", 0.0015, "linear")
        assert config.logger.wandb == "online"


def test_help_says_how_to_vary(capsys):
    assert run(["--help"]) == 0
    assert "low..high" in capsys.readouterr().out


def test_the_layout_shows_every_measure_and_no_other():
    from records import EVAL, STEP

    from distllm.observe.goodput import CATEGORIES, Account

    account = Account(dict.fromkeys(CATEGORIES, 1.0), 2, 3, 0, {"killed": 1}, 1)
    step = replace(STEP, epsilon=1.0, epsilon_poisson=0.5)
    watched = replace(EVAL, exposure={"x0": 1.4, "x64": 9.9}, sources={"wiki": 3.0})
    logged = {*step_values(step), *eval_values(watched, "causal_lm"), *reliability_values(account)}
    panels = [panel for section in layout("causal_lm").values() for panel in section]
    found = [(name, panel) for name in logged for panel in panels if shows(panel, name)]
    assert sorted(name for name, _ in found) == sorted(logged)  # each in one panel
    assert {panel for _, panel in found} == set(panels)


def shows(panel, name):
    return bool(re.search(panel.pattern, name)) if panel.pattern else name in panel.measures


@pytest.mark.slow
def test_the_layout_is_a_workspace(tmp_path, monkeypatch, capsys):
    import json

    from distllm.commands.dashboard import run as dashboard
    from distllm.errors import ConfigError, MissingDependency

    out = tmp_path / "layout.json"
    assert dashboard(["entity=me", "project=p", f"out={out}"]) == 0
    spec = json.loads(out.read_text())
    sections = spec["spec"]["section"]["panel_bank_config"]["sections"]
    names = [section["name"] for section in sections if section["panels"]]
    assert names == [*layout("causal_lm"), "Samples"]
    assert "train/loss" in json.dumps(sections[0])
    (privacy,) = (json.dumps(section) for section in sections if section["name"] == "Privacy")
    assert '"^eval/causal_lm/exposure/.*"' in privacy
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.save", refused)
    with pytest.raises(ConfigError, match="did not accept the layout"):
        dashboard(["entity=me"])
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(MissingDependency, match="not installed"):
        dashboard(["entity=me"])


def refused(self):
    raise ConnectionError("no network")
