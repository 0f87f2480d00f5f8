import re
import subprocess
import sys
from dataclasses import replace

import pytest

from distllm.commands.sweep import run
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
        "name=mine-${envvar:WANDB_RUN_ID}", "${args_no_hyphens}",
    ]  # fmt: skip
    assert swept("seed=1,2")["metric"]["name"] == "eval/causal_lm/loss"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["experiment=demo"], "nothing is to be varied"),
        (["optim.lr=1e-2..1e-4"], "is no range"),
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


def test_the_file_starts_a_trial_as_an_agent_would(tmp_path, capsys):
    """An agent replaces the macros of the command; what results is a command line of ours."""
    out = tmp_path / "sweep.yaml"
    assert run(["experiment=demo", "optim.lr=1e-4..1e-2", "schedule.name=*", f"sweep.out={out}"]) == 0
    assert f"wandb sweep {out}" in capsys.readouterr().out
    command = []
    for word in from_yaml(out)["command"]:
        if word == "${args_no_hyphens}":
            command += ["optim.lr=0.0015", "schedule.name=linear"]
        else:
            command.append(re.sub(r"\$\{envvar:WANDB_RUN_ID\}", "abc123", word))
    assert command[:2] == ["distllm", "train"]
    shown = subprocess.run(
        [sys.executable, "-m", "distllm.cli", "train", "--cfg", "job", *command[2:]],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    for line in ("name: demo-abc123", "lr: 0.0015", "name: linear", "wandb: online"):
        assert line in shown


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
    with pytest.raises(ConfigError, match="did not take the layout"):
        dashboard(["entity=me"])
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(MissingDependency, match="not installed"):
        dashboard(["entity=me"])


def refused(self):
    raise ConnectionError("no network")
