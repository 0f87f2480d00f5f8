import json
import shutil
import subprocess
import sys

import pytest

import distllm
from distllm import provenance
from distllm.train.run_directory import RunDirectory

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """distllm as if installed outside a checkout, and a current directory of the user's."""
    monkeypatch.setattr(distllm, "__file__", str(tmp_path / "site-packages" / "distllm" / "__init__.py"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def git(directory, *words):
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    subprocess.run(["git", *identity, *words], cwd=directory, check=True, capture_output=True)


def committed(directory):
    git(directory, "init", "-q")
    (directory / "notes.txt").write_text("first")
    git(directory, "add", "notes.txt")
    git(directory, "commit", "-qm", "first")
    shown = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=directory, check=True, capture_output=True, text=True
    )
    return shown.stdout.strip()


def test_outside_git_there_is_no_revision(elsewhere):
    assert provenance.revision() is None


@needs_git
def test_revision_is_the_commit_and_says_when_files_differ(elsewhere):
    commit = committed(elsewhere)
    assert provenance.revision() == commit
    (elsewhere / "untracked.txt").write_text("no part of the code")
    assert provenance.revision() == commit
    (elsewhere / "notes.txt").write_text("changed")
    assert provenance.revision() == f"{commit}+changes"


@needs_git
def test_the_checkout_of_distllm_comes_before_the_current_directory(elsewhere, tmp_path):
    other = committed(elsewhere)
    checkout = tmp_path / "site-packages"
    checkout.mkdir()
    (checkout / "extra").mkdir()
    git(checkout, "init", "-q")
    (checkout / "code.py").write_text("x = 1")
    git(checkout, "add", "code.py")
    git(checkout, "commit", "-qm", "code")
    assert provenance.revision() not in (None, other)


@needs_git
def test_a_machine_without_git_is_no_error(elsewhere, monkeypatch):
    committed(elsewhere)
    monkeypatch.setenv("PATH", "/nowhere")
    assert provenance.revision() is None


def test_equal_environments_have_equal_digests(monkeypatch):
    first, again = provenance.environment(), provenance.environment()
    assert first == again
    changed = {**provenance.packages(), "torch": "9.9"}
    monkeypatch.setattr(provenance, "packages", lambda: changed)
    other = provenance.environment()
    assert other["packages_digest"] != first["packages_digest"]
    assert other["packages"]["torch"] == "9.9"


def test_environment_knows_the_machine_and_is_json():
    facts = provenance.environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] > 2**28
    assert facts["packages"]["torch"].startswith("2.")
    assert facts["distllm"] == distllm.__version__


def test_asking_for_the_environment_imports_no_package_it_names():
    code = (
        "import sys, distllm.provenance as p; facts = p.environment();"
        "print(sorted(set(facts['packages']) & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout.strip() == "[]"


def test_each_attempt_keeps_its_own_environment(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.write_environment(1, {"host": "a"})
    directory.write_environment(2, {"host": "b"})
    assert json.loads((tmp_path / "environment.json").read_text()) == {"1": {"host": "a"}, "2": {"host": "b"}}
