"""The wheel and the sdist, away from the checkout: links have become real files, nothing is left behind."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LINKED = ("kernels", "conf", "launch", "slurm")
SOURCES = ("distllm", *LINKED, "pyproject.toml", "README.md", "LICENSE")
SHIPPED = (".py", ".yaml", ".typed", ".sbatch", ".sh", ".md", ".css", ".js", ".html", ".cu", ".cuh", ".h")
VERSION = metadata.version("distllm")


def run(command, directory):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(
        list(map(str, command)),
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def build(kind, source, out):
    """Build a ``wheel`` or ``sdist`` with the tools of this environment; return its path."""
    run([sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", out, source], source)
    (product,) = out.iterdir()
    return product


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what is packaged, with its links, so that building leaves nothing in the real one."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    assert all((copy / "distllm" / name).is_symlink() for name in LINKED)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    return build("wheel", checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory):
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The ``bin`` of a fresh environment that holds the wheel and sees our dependencies, not the checkout."""
    home = tmp_path_factory.mktemp("venv")
    run([sys.executable, "-m", "venv", "--without-pip", home], home)
    python = home / "bin" / "python"
    own = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], home).strip())
    # Path files inside a directory named by a path file are not read: an editable distllm stays hidden.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel]
    run(install, home)
    return home / "bin"


def content(wheel):
    """Name and bytes of every file of the package in ``wheel``."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.startswith("distllm/")}


def expected_files():
    """What the package holds in the checkout, links followed."""
    wanted = {}
    for top, real in (("distllm", ROOT / "distllm"), *((f"distllm/{name}", ROOT / name) for name in LINKED)):
        for path in real.rglob("*"):
            linked = any(parent.is_symlink() for parent in (path, *path.parents) if parent != ROOT)
            if path.is_file() and not linked and path.suffix in SHIPPED:
                wanted[f"{top}/{path.relative_to(real)}"] = path.read_bytes()
    assert len(wanted) > 100
    return wanted


def test_wheel_holds_the_whole_package_and_nothing_else(wheel):
    assert content(wheel) == expected_files()
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        assert tops == {"distllm", f"distllm-{VERSION}.dist-info"}
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_linked_packages_are_real_files_in_wheel_and_sdist(wheel, sdist):
    with zipfile.ZipFile(wheel) as archive:
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    assert not [name for name, mode in modes.items() if mode & 0o170000 == 0o120000]
    with tarfile.open(sdist) as archive:
        members = {member.name.split("/", 1)[-1]: member for member in archive.getmembers()}
    for name in LINKED:
        assert modes[f"distllm/{name}/__init__.py"]
        assert members[f"distllm/{name}/__init__.py"].isreg()


@pytest.mark.skipif(
    not hasattr(tarfile, "data_filter"), reason="extraction has filters from Python 3.11.4 on"
)
def test_wheel_from_the_sdist_is_the_same(wheel, sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert content(build("wheel", source, tmp_path / "out")) == content(wheel)


def test_linked_packages_import_from_the_wheel(installed, tmp_path):
    code = (
        "import json, distllm, distllm.kernels, distllm.conf, distllm.launch;"
        "print(json.dumps([m.__file__ for m in (distllm, distllm.kernels, distllm.conf, distllm.launch)]))"
    )
    for file in json.loads(run([installed / "python", "-c", code], tmp_path)):
        assert Path(file).is_relative_to(installed.parent)
        assert not Path(file).parent.is_symlink()


def test_configuration_composes_from_the_wheel(installed, tmp_path):
    code = (
        "from distllm.config.compose import compose; config = compose(['experiment=demo', 'optim.lr=0.5']);"
        "print(config.name, config.optim.lr, config.engine.name)"
    )
    assert run([installed / "python", "-c", code], tmp_path).split() == ["demo", "0.5", "deepspeed"]


def test_command_works_from_the_wheel(installed, tmp_path):
    assert "usage: distllm" in run([installed / "distllm", "--help"], tmp_path)
    assert "links" in run([installed / "distllm", "doctor"], tmp_path)
    assert list(tmp_path.iterdir()) == []
