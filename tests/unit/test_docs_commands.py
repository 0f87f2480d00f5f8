"""Commands in docs/: each runs here, or says why it does not; and each is one that distllm accepts."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from distllm.cli import COMMANDS
from distllm.commands.arguments import parse_config_arguments, parse_options
from distllm.config.compose import compose
from distllm.config.overrides import split_override

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = sorted((CHECKOUT / "docs").rglob("*.md"))
BLOCK = re.compile(
    r"(?:<!-- (?:not run|run small): (?P<reason>[^\n]+) -->\n)?"
    r"^(?P<indent> *)(?P<fence>```+|~~~+)(?P<kind>\S*)[^\n]*\n"
    r"(?P<text>.*?)^ *(?P=fence)",
    re.MULTILINE | re.DOTALL,
)
COMMAND = re.compile(
    r"^ *(?:\$ )?(?:[A-Z_]+=\S+ )*"
    r"((?:distllm [a-z]+|python|pip|make|wandb|torchrun|deepspeed|srun|sbatch|vllm)(?= |$)[^#\n]*)",
    re.MULTILINE,
)
PROMPT = re.compile(r"^ *\$ ([^#\n]*)", re.MULTILINE)
TOOLS = re.compile(
    r"^ *(?:[A-Z_]+=\S+ )*(?:\$ |(?:curl|wget|git|docker|podman|apptainer|apt-get|apt|sudo|export|source|"
    r"tensorboard|mlflow|trackio|mpirun|nsys|pytest|unzip|tar|scancel|squeue|scontrol|ssh|scp|rsync|kubectl|"
    r"npm|uv|conda)\s)",
    re.MULTILINE,
)
SHELLS = ("sh", "bash", "shell", "zsh", "console")
COMPOSED = ("train", "prepare", "chaos", "plan")
MIXED = ("submit", "launch")  # options of their own beside a configuration
FLAGS = ("--dry-run", "--allow", "--json", "--scale", "--calibrate")
# How the options of actions are called, where not like them.
ACTIONS = {"search": {}, "checkpoint": {"ls": "List"}, "data": {"verify": "Dataset", "merge": "Dataset"}}
PARSED = (
    "report",
    "serve",
    "ledger",
    "generate",
    "evaluate",
    "inspect",
    "export",
    "dashboard",
    "jobs",
    "doctor",
)


def blocks(page):
    """Yield (place, kind, reason why it is not run, commands) of each block that holds commands."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        told = found["text"].replace("\\\n", " ")
        asked = PROMPT if found["kind"] == "console" else COMMAND
        commands = [command.strip() for command in asked.findall(told)]
        if commands or found["kind"] in SHELLS or TOOLS.search(told):
            line = text[: found.start()].count("\n") + 1
            yield f"{page.name}:{line}", found["kind"], found["reason"], commands


ALL = [block for page in PAGES for block in blocks(page)]
OURS = [
    (place, command)
    for place, _, _, commands in ALL
    for command in commands
    if command.startswith("distllm ")
]


def test_commands_are_found():
    assert len(PAGES) >= 10
    assert len(OURS) >= 20


def test_every_block_of_commands_runs_or_says_why_not():
    outside = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "slurm/README.md")
    read_first = [block for page in outside for block in blocks(CHECKOUT / page)]
    silent = [
        place
        for place, kind, reason, _ in (*ALL, *read_first)
        if kind != "console" and not (reason and len(reason) > 15)
    ]
    assert silent == [], "make it a console block, or put <!-- not run: REASON --> above it"
    told = [reason for *_, reason, _ in (*ALL, *read_first) if reason]
    named = {path for reason in told for path in re.findall(r"tests/[\w/*.]*\w", reason)}
    assert [path for path in named if not list(CHECKOUT.glob(path))] == [], "a reason names what is not there"
    followed = [page.name for page in PAGES if "<!-- run small" in page.read_text(encoding="utf-8")]
    assert set(followed) <= {page.name for page in (CHECKOUT / "docs" / "tutorials").iterdir()}
    both = [place for place, kind, reason, _ in ALL if kind == "console" and reason]
    assert both == [], "a console block is run"
    empty = [place for place, kind, _, commands in ALL if kind == "console" and not commands]
    assert empty == [], "a command of a console block stands behind $"


def test_the_readme_names_every_command():
    table = (CHECKOUT / "README.md").read_text(encoding="utf-8").partition("## The commands\n")[2]
    named = re.findall(r"`([a-z]+)`", table.partition("\n## ")[0])
    assert sorted(named) == sorted(COMMANDS)


@pytest.mark.parametrize(
    "block",
    [
        "```sh\nls runs\n```",
        "1. so:\n\n   ```text\n   distllm train experiment=demo\n   ```",
        "```text\nCUDA_VISIBLE_DEVICES=0 curl localhost:8000\n```",
        "~~~\n$ distllm doctor\n~~~",
        "<!-- not run -->\n```python title='x'\n$ ls\n```",
    ],
)
def test_no_way_of_writing_a_block_hides_its_commands(block, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"{block}\n\n<!-- not run: it needs a server that is not here -->\n{block}\n")
    first, *_ = blocks(page)
    assert first[2] is None
    page.write_text(
        "```console\n$ ls runs\nlisted\n$ distllm doctor   # and this\n```\n```text\nprinted\n```\n"
    )
    assert [one[3] for one in blocks(page)] == [["ls runs", "distllm doctor"]]


@pytest.mark.slow
@pytest.mark.parametrize(("place", "command"), OURS, ids=[f"{p} {c[:40]}" for p, c in OURS])
def test_every_command_is_one_that_distllm_accepts(place, command, monkeypatch):
    """Sub-command, keys, choices and values are right: composed or parsed, not run."""
    monkeypatch.chdir(CHECKOUT)
    _, name, *words = shlex.split(command)
    assert name in COMMANDS, place
    module = importlib.import_module(f"distllm.commands.{name}")
    words = [word for word in words if word not in ("...", "…")]
    if name in MIXED:
        own = [word for word in words if split_override(word)[1] in module.Options.__dataclass_fields__]
        parse_options(name, module.Options, own)
        words = [word for word in words if word not in (*own, "prepare", "evaluate")]
    if name in (*COMPOSED, *MIXED):
        arguments = parse_config_arguments(name, "", words, dict.fromkeys(FLAGS, ""))
        overrides = [word for word in arguments.overrides if not swept(word)]
        if arguments.config_dir is None or arguments.config_dir.is_dir():
            compose(overrides, config_dir=arguments.config_dir)
    elif name in PARSED:
        parse_options(name, module.Options, words)
    elif name in ACTIONS:
        action, *words = words
        assert action in module._ACTIONS, place
        words = [word for word in words if (name, action, word[:3]) != ("data", "forget", "id=")]
        options = getattr(module, f"{ACTIONS[name].get(action, action.title())}Options")
        parse_options(f"{name} {action}", options, words)


def swept(word):
    """Whether a word varies a key, which only the command itself may."""
    value = split_override(word)[2] or ""
    return "," in value and value[0] not in "[{'\""


CONSOLE = [(place, commands) for place, kind, _, commands in ALL if kind == "console"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory with two small runs, demo and demo-2."""
    root = tiny.prepare(tmp_path_factory.mktemp("docs"))
    for name in ("demo", "demo-2"):
        done = tiny.distllm(
            "train", *tiny.overrides(root, f"name={name}", "engine=local", "train.max_steps=3")
        )
        assert done.returncode == 0, done.stderr
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("place", "commands"), CONSOLE, ids=[place for place, _ in CONSOLE])
def test_console_blocks_run(place, commands, directory):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=directory, capture_output=True, text=True, timeout=200, check=False,
            env=tiny.environment(PATH=path),
        )  # fmt: skip
        assert done.returncode == 0, f"{place}: $ {command}\n{done.stdout}\n{done.stderr}"
