"""The project's files agree with each other: requirements, lock, reasons, entry points."""

import os
import re
import subprocess
import tomllib
from fnmatch import fnmatch
from importlib.metadata import distribution

import pytest
from arch.sources import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = [Requirement(text) for extra in PROJECT["optional-dependencies"].values() for text in extra]


def pins():
    text = (ROOT / ".ci" / "requirements.lock").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = dict(row.split("==") for row in rows)
    assert len(found) == len(rows) > 50
    return found


def test_twelve_direct_runtime_dependencies_at_most():
    assert 0 < len(RUNTIME) <= 12


def test_every_direct_dependency_has_its_reason_in_the_docs():
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    reasons = dict(re.findall(r"^\| `([^`]+)` \| (.+?) \|", text, flags=re.MULTILINE))
    wanted = {canonicalize_name(requirement.name) for requirement in RUNTIME + EXTRAS}
    assert set(reasons) == wanted, f"without reason: {wanted - set(reasons)}, gone: {set(reasons) - wanted}"
    assert all(len(reason) > 20 for reason in reasons.values())


@pytest.mark.parametrize("requirement", RUNTIME + EXTRAS, ids=str)
def test_lock_satisfies_every_requirement(requirement):
    locked = pins().get(canonicalize_name(requirement.name))
    assert locked is not None, f"{requirement.name} is not in .ci/requirements.lock"
    assert requirement.specifier.contains(locked, prereleases=True)


def test_lock_pins_torch_without_naming_a_build():
    assert pins()["torch"] == "2.13.0"
    assert not [name for name, version in pins().items() if "+" in version]


def test_lock_installs_on_the_python_of_debian_12():
    refused = {}
    for name, version in pins().items():
        found = distribution(name)
        assert found.version.split("+")[0] == version, f"{name} is not installed as pinned: make setup"
        if not SpecifierSet(found.metadata.get("Requires-Python", "")).contains("3.11.2"):
            refused[name] = found.metadata["Requires-Python"]
    assert refused == {}


def test_version_is_stated_once():
    import distllm

    assert distllm.__version__ == PROJECT["version"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_ci_script_is_executable_and_valid_bash():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")


TARGETS = ("setup", "demo", "check", "test", "test-slurm", "test-kernels", "readme", "gpu-check", "clean")


@pytest.mark.parametrize("target", TARGETS)
def test_make_target_exists(target):
    result = subprocess.run(
        ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr


def test_no_directory_of_tests_is_left_out_by_its_name(pytestconfig):
    """pytest's default leaves out what is called dist or build."""
    skipped = pytestconfig.getini("norecursedirs")
    directories = {path.parent.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")}
    hidden = [str(path) for path in directories if any(fnmatch(path.name, pattern) for pattern in skipped)]
    assert len(directories) >= 8
    assert hidden == []
