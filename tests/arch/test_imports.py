"""Who may import what: the layers, the torch-free part, and one name for each package."""

import subprocess
import sys
from pathlib import Path

import pytest
from arch.sources import ROOT, code_files, files_of_tests, imported_modules, name_of, python_files

HEAVY = ("torch", "deepspeed", "transformers", "wandb")
TORCH_FREE_PACKAGES = ("config", "data", "plan", "observe", "cluster", "commands")
LINKED_PACKAGES = ("kernels", "conf", "launch", "slurm")

BLOCKED_IMPORT = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {heavy!r}:
            raise ImportError(f"{{name}} must not be imported here")

sys.meta_path.insert(0, Refuse())
for module in {modules!r}:
    importlib.import_module(module)
"""


def torch_free_modules():
    files = [*(ROOT / "distllm").glob("*.py")]
    files += [path for package in TORCH_FREE_PACKAGES for path in (ROOT / "distllm" / package).glob("*.py")]
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files
    }
    assert len(names) >= 40, f"only {len(names)} modules found"
    return sorted(names)


def import_without_heavy_packages(modules):
    code = BLOCKED_IMPORT.format(heavy=HEAVY, modules=modules)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def test_login_node_modules_import_without_torch():
    result = import_without_heavy_packages(torch_free_modules())
    assert result.returncode == 0, result.stderr[-3000:]


def test_the_import_block_blocks():
    result = import_without_heavy_packages(["distllm.dist.topology"])
    assert "torch must not be imported here" in result.stderr


def test_layers_hold():
    result = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert " 0 broken" in result.stdout


def test_linked_packages_have_one_name():
    bare = [
        f"{name_of(path)}:{line} imports {module}"
        for path in (*code_files(), *files_of_tests())
        for line, module in imported_modules(path)
        if module.split(".")[0] in LINKED_PACKAGES
    ]
    assert not bare, f"import distllm.<name> instead: {bare}"


def test_no_relative_imports_or_stars():
    import ast

    from arch.sources import tree

    bad = [
        f"{name_of(path)}:{node.lineno}"
        for path in code_files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and (node.level or any(alias.name == "*" for alias in node.names))
    ]
    assert not bad


@pytest.mark.parametrize("name", LINKED_PACKAGES)
def test_linked_packages_are_links_into_the_checkout(name):
    link = ROOT / "distllm" / name
    assert link.is_symlink(), f"{link} must be a symbolic link: git was told not to make links"
    assert link.resolve() == ROOT / name
    assert python_files(name)
