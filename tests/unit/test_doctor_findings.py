import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest

from distllm import doctor
from distllm.doctor import Finding, diagnose, exit_code, render

Usage = namedtuple("Usage", "total used free")
GIB = 2**30


@pytest.fixture(autouse=True)
def _quiet_machine(tmp_path, monkeypatch):
    """A machine with no tools, an empty home and no locks: each test adds its own trouble."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("TORCH_EXTENSIONS_DIR", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def tool(tmp_path, name, script="exit 0"):
    path = tmp_path / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def found(tmp_path, name, **options):
    """The findings called ``name``; there must be one."""
    matching = [finding for finding in diagnose(tmp_path, **options) if finding.name == name]
    assert matching, f"nothing said about {name}"
    return matching


def one(tmp_path, name, **options):
    (finding,) = found(tmp_path, name, **options)
    return finding


def versions(monkeypatch, **changed):
    """Pretend that packages have other versions; None means not installed."""
    real = metadata.version

    def version(name):
        if name not in changed:
            return real(name)
        if changed[name] is None:
            raise metadata.PackageNotFoundError(name)
        return changed[name]

    monkeypatch.setattr(metadata, "version", version)


def test_this_installation_is_sound(tmp_path):
    findings = diagnose(tmp_path)
    assert exit_code(findings) == 0, render(findings)
    packages = one(tmp_path, "packages").detail
    for requirement in metadata.requires("distllm"):
        if "extra" not in requirement:
            assert requirement.split(">")[0].split("<")[0] in packages


@pytest.mark.parametrize("version", ["2.12.9", "1.99", None])
def test_package_too_old_or_missing_fails_with_the_command(tmp_path, monkeypatch, version):
    versions(monkeypatch, torch=version)
    finding = one(tmp_path, "torch")
    assert finding.level == "fail"
    assert (version or "none") in finding.detail
    assert finding.remedy == "pip install 'torch>=2.13'"
    assert exit_code(diagnose(tmp_path)) == 1


@pytest.mark.parametrize("version", ["2.13", "2.13.0+cpu", "2.14.1", "10.0"])
def test_newer_package_is_fine(tmp_path, monkeypatch, version):
    versions(monkeypatch, torch=version)
    assert f"torch {version}" in one(tmp_path, "packages").detail


def test_package_beyond_the_upper_bound_fails(tmp_path, monkeypatch):
    versions(monkeypatch, **{"hydra-core": "1.4.0"})
    assert one(tmp_path, "hydra-core").level == "fail"


def test_missing_extra_is_only_a_warning(tmp_path, monkeypatch):
    versions(monkeypatch, transformers=None)
    finding = one(tmp_path, "transformers")
    assert (finding.level, finding.remedy) == ("warn", "pip install 'distllm[eval]'")


def test_short_version_equals_the_bound_it_spells_differently(tmp_path, monkeypatch):
    versions(monkeypatch, numpy="2")
    assert "numpy 2," in one(tmp_path, "packages").detail


def test_tools_of_developers_are_not_a_users_concern(tmp_path, monkeypatch):
    versions(monkeypatch, ruff=None, mypy=None)
    assert {"ruff", "mypy"}.isdisjoint(finding.name for finding in diagnose(tmp_path))


def test_package_that_was_never_installed(tmp_path, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    monkeypatch.setattr(metadata, "metadata", missing)
    assert one(tmp_path, "packages").level == "fail"


def test_old_python_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    finding = one(tmp_path, "python")
    assert finding.level == "fail"
    assert "3.11" in finding.remedy


def test_gpu_with_a_cpu_build_of_torch(tmp_path, monkeypatch):
    tool(tmp_path, "nvidia-smi", "echo 'NVIDIA H100, 81559 MiB, 570.1'")
    monkeypatch.setattr(doctor, "_torch_build", lambda: "cpu")
    finding = one(tmp_path, "gpu")
    assert finding.level == "warn"
    assert "cpu build" in finding.detail


def test_gpus_are_counted(tmp_path, monkeypatch):
    tool(tmp_path, "nvidia-smi", "echo 'NVIDIA H100, 81559 MiB, 570.1'; echo 'NVIDIA H100, 81559 MiB, 570.1'")
    monkeypatch.setattr(doctor, "_torch_build", lambda: "cuda 13.0")
    assert one(tmp_path, "gpu") == Finding("ok", "gpu", "2 found: NVIDIA H100, 81559 MiB, 570.1")


def test_broken_driver_fails(tmp_path):
    tool(tmp_path, "nvidia-smi", "echo 'driver/library version mismatch'; exit 18")
    finding = one(tmp_path, "gpu")
    assert finding.level == "fail"
    assert "version mismatch" in finding.detail


def test_torch_build_is_read_without_importing_torch(tmp_path):
    import torch

    expected = f"cuda {torch.version.cuda}" if torch.version.cuda else "cpu"
    assert one(tmp_path, "torch build").detail == expected


def test_attention_that_this_machine_has_and_what_the_rest_lacks(tmp_path, monkeypatch):
    versions(monkeypatch, **{"flash-attn-3": None, "flash-attn-4": None, "triton": "3.7.0"})
    without = one(tmp_path, "kernels").detail
    assert without.startswith("attention here: documents, sdpa, source; ")
    assert "triton runs on cuda" in without
    tool(tmp_path, "nvidia-smi", "echo 9.0")
    detail = one(tmp_path, "kernels").detail
    assert detail.startswith("attention here: cudnn, triton, flash, flex, sdpa, source; ")
    assert "fa3 needs the package flash-attn-3" in detail


def test_one_core_is_too_few_for_the_demo(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "available_cores", lambda: 1)
    finding = one(tmp_path, "cores")
    assert finding.level == "warn"
    assert "procs_per_node=1" in finding.remedy


@pytest.mark.parametrize(
    ("memory", "level", "shown"), [(2 * GIB, "warn", "2.0 GiB"), (8 * GIB, "ok", "8.0 GiB")]
)
def test_little_memory_is_a_warning(tmp_path, monkeypatch, memory, level, shown):
    monkeypatch.setattr(doctor, "total_memory", lambda: memory)
    finding = one(tmp_path, "memory")
    assert (finding.level, finding.detail) == (level, shown)


def test_missing_compiler_is_a_warning_and_cxx_is_respected(tmp_path, monkeypatch):
    finding = one(tmp_path, "compiler")
    assert finding.level == "warn"
    assert "engine.compile" in finding.detail
    tool(tmp_path, "my-c++")
    monkeypatch.setenv("CXX", "my-c++")
    assert one(tmp_path, "compiler").level == "ok"


def test_launchers_are_found_on_the_path_and_beside_python(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    assert one(tmp_path, "launchers").level == "warn"
    tool(tmp_path, "srun")
    finding = one(tmp_path, "launchers")
    assert finding.level == "ok"
    assert finding.detail.startswith("srun found; ")
    (tmp_path / "venv").mkdir()
    shutil.copy(tmp_path / "bin" / "srun", tmp_path / "venv" / "torchrun")
    assert "torchrun, srun found" in one(tmp_path, "launchers").detail


@pytest.mark.parametrize(("free", "level"), [(GIB // 2, "fail"), (5 * GIB, "warn"), (50 * GIB, "ok")])
def test_free_disk(tmp_path, monkeypatch, free, level):
    monkeypatch.setattr(doctor, "free_bytes", lambda _: free)
    assert one(tmp_path / "not" / "there" / "yet", "disk").level == level


def test_directory_below_a_file_fails(tmp_path):
    (tmp_path / "runs").write_text("a file")
    finding = one(tmp_path / "runs" / "x", "disk")
    assert finding.level == "fail"
    assert "cannot be written" in finding.detail


def test_unwritable_directory_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    assert one(tmp_path, "disk").level == "fail"


@pytest.mark.parametrize(("total", "level"), [(64 * 2**20, "warn"), (8 * GIB, "ok")])
def test_shared_memory_of_a_container(tmp_path, monkeypatch, total, level):
    monkeypatch.setattr(doctor, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(total, 0, 20 * GIB))
    finding = one(tmp_path, "shared memory")
    assert finding.level == level
    assert ("--shm-size" in finding.remedy) == (level == "warn")


def lock_in(root, age):
    lock = root / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (time.time() - age,) * 2)
    return lock


@pytest.mark.parametrize("place", ["environment", "home", "runs", "cache", "checkout"])
def test_stale_lock_is_found_named_and_its_remedy_works(tmp_path, monkeypatch, place):
    roots = {
        "environment": tmp_path / "elsewhere",
        "home": tmp_path / "home" / ".cache" / "torch_extensions",
        "runs": tmp_path / "my runs" / ".torch_extensions",
        "cache": tmp_path / "my runs" / ".cache" / "torch_extensions",
        "checkout": tmp_path / ".cache" / "torch_extensions",
    }
    if place == "environment":
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(roots[place]))
    lock = lock_in(roots[place], age=7500)
    runs = tmp_path / "my runs"
    finding = one(runs, "build lock")
    assert finding.level == "fail"
    assert str(lock) in finding.detail
    assert "2h05m" in finding.detail
    assert exit_code(diagnose(runs)) == 1

    subprocess.run(["/bin/" + shlex.split(finding.remedy)[0], *shlex.split(finding.remedy)[1:]], check=True)
    assert not lock.exists()
    assert one(runs, "build locks").level == "ok"


def test_lock_that_a_live_process_holds_is_left_alone(tmp_path):
    lock = lock_in(tmp_path / ".torch_extensions", age=7500)
    with lock.open():
        finding = one(tmp_path, "build lock")
    assert finding.level == "warn"
    assert f"process {os.getpid()} is building" in finding.detail
    assert "rm " not in finding.remedy
    assert one(tmp_path, "build lock").level == "fail"


def test_young_lock_may_belong_to_another_machine(tmp_path):
    lock_in(tmp_path / ".torch_extensions", age=60)
    finding = one(tmp_path, "build lock")
    assert finding.level == "warn"
    assert "another machine" in finding.remedy


def test_two_locks_are_two_findings(tmp_path):
    lock_in(tmp_path / ".torch_extensions", age=7500)
    lock_in(tmp_path / "home" / ".cache" / "torch_extensions", age=7500)
    assert len(found(tmp_path, "build lock")) == 2


def test_links_checked_out_as_text_files(tmp_path, monkeypatch):
    for name in ("conf", "launch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "kernels").write_text("../kernels")
    monkeypatch.setattr(doctor, "_PACKAGE", tmp_path)
    finding = one(tmp_path, "links")
    assert finding.level == "fail"
    assert "distllm/kernels" in finding.detail
    assert "distllm/conf" not in finding.detail
    assert "core.symlinks" in finding.remedy


def test_deep_imports_report_what_broke(tmp_path, monkeypatch):
    packages = tmp_path / "packages"
    (packages / "torch").mkdir(parents=True)
    (packages / "torch" / "__init__.py").write_text("raise OSError('libfoo.so: cannot open')")
    (packages / "deepspeed.py").write_text("__version__ = '9.9'")
    monkeypatch.setenv("PYTHONPATH", str(packages))
    broken, sound = one(tmp_path, "import torch", deep=True), one(tmp_path, "import deepspeed", deep=True)
    assert broken.level == "fail"
    assert "libfoo.so" in broken.detail
    assert sound.level == "ok"
    assert sound.detail.startswith("9.9 in ")


@pytest.mark.slow
def test_import_that_hangs_fails_in_time(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import time; time.sleep(60)")
    (tmp_path / "deepspeed.py").write_text("__version__ = '1'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_IMPORT_SECONDS", 1)
    started = time.monotonic()
    finding = one(tmp_path, "import torch", deep=True)
    assert time.monotonic() - started < 20
    assert finding.level == "fail"
    assert "no answer" in finding.detail


def test_table_puts_each_remedy_below_its_finding():
    findings = [Finding("ok", "python", "3.11"), Finding("fail", "disk", "full", "free space")]
    assert render(findings).splitlines() == [
        "ok    python  3.11",
        "fail  disk    full",
        "              -> free space",
        "",
        "1 to fix, 0 warnings, 2 checked",
    ]
    assert exit_code(findings) == 1
    assert exit_code([Finding("warn", "x", "y")]) == 0


def test_doctor_imports_no_torch():
    code = (
        "import sys; from pathlib import Path; from distllm.doctor import *; render(diagnose(Path('runs')));"
        "print(sorted({'torch', 'deepspeed', 'wandb', 'rich'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout.strip() == "[]"
