"""The README's commands run, in its order, and what it shows is what they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def run(command, directory, expected=0, timeout=900):
    environment = tiny.environment(PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(
        command, shell=True, cwd=directory, capture_output=True, text=True, timeout=timeout,
        check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == expected, f"$ {command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.timeout(900)
def test_the_first_ten_commands_run_in_order(tmp_path):
    commands = [line[2:] for block in blocks("console") for line in block.splitlines()]
    assert len(commands) == 10
    tiny.write_corpus(tmp_path / "my-text")
    printed = [run(command, tmp_path) for command in commands]
    assert "resuming from step 4" in printed[3]
    assert "sequences_per_step" in printed[4]
    assert "step 2, rank 0" in printed[5]
    assert "perplexity" in printed[6]
    assert printed[7].startswith("Once upon a time")
    assert "transformers agrees" in printed[8]
    assert "lr: 0.001" in printed[9]


def test_the_error_is_shown_as_it_is_printed(tmp_path):
    (shown,) = [block for block in blocks("text") if block.startswith("$ distllm train")]
    command, _, expected = shown.partition("\n")
    assert run(command[2:], tmp_path, expected=64).strip() == expected.strip()


def test_the_plan_is_shown_as_it_is_printed(tmp_path):
    (shown,) = [block for block in blocks("text") if block.startswith("$ distllm plan")]
    command, *expected = shown.splitlines()
    printed = run(command[2:], tmp_path).splitlines()
    assert [line for line in expected if line != "..." and line not in printed] == []


@pytest.mark.timeout(1200)
def test_the_demo_keeps_its_promises(tmp_path):
    (setup,) = blocks("sh")
    assert "make demo" in setup
    printed = run("distllm demo", tmp_path, timeout=1100)
    (tmp_path / "demo.txt").write_text(printed)
    for promise in ("DIFFERENT", "Traceback"):
        assert promise not in printed
    assert printed.count(": equal") >= 2
    assert "transformers agrees: largest difference of logits" in printed
    assert "perplexity" in printed.split("5/5")[1]


def test_every_file_the_readme_names_exists():
    links = re.findall(r"\]\(([\w/.-]+)\)", README)
    assert links
    paths = [*links, *re.findall(r"`((?:distllm|tests|conf|launch|kernels)/[\w/.]*)`", README)]
    assert [path for path in paths if not (CHECKOUT / path).exists()] == []
