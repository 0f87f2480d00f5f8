"""Compile the operators of `ops.cu`, once for each source, compiler target and torch, and load them.

nvcc makes the library for GPUs; a C++ compiler makes the same kernels for the CPU, where threads take turns
(`simt.h`): that one is for tests. What was built is kept under ``~/.cache/distllm/cuda``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from distllm.errors import DistllmError, MissingDependency

HERE = Path(__file__).parent
SOURCES = ("simt.h", "adamw.cuh", "rms_norm.cuh", "ops.cu")
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020d000000000000"  # torch 2.13, the first with the stream's handle
_SECONDS = 900
Target = Literal["cpu", "cuda"]


@cache
def load(target: Target) -> None:
    """Register the operators ``torch.ops.distllm_cuda`` for one kind of device, compiling them if need be.

    Raises:
        MissingDependency: there is no compiler.
        DistllmError: the compiler failed; its words are in the message.
    """
    torch.ops.load_library(str(build(target)))  # type: ignore[no-untyped-call]  # torch does not annotate it


def build(target: Target, arch: str | None = None) -> Path:
    """Return the compiled library for ``target``.

    Args:
        target: cuda, or cpu for the host's version.
        arch: of the GPU, such as sm_90; default: that of the present one.

    Raises:
        MissingDependency: there is no compiler.
        DistllmError: the compiler failed.
    """
    command = _command(target, arch)
    key = hashlib.sha256(" ".join((*command, torch.__version__, source_digest())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "distllm" / "cuda"
    library = folder / f"distllm_{target}_{key}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / library.name
        library_folder = Path(torch.__file__).parent / "lib"
        linked = [f"-L{library_folder}", "-ltorch", "-ltorch_cpu", "-lc10"]
        plain = ["-x", "none"] if target == "cpu" else []  # what follows is no C++ source
        run_compiler([*command, "-o", str(made), str(HERE / "ops.cu"), *plain, *linked])
        made.replace(library)  # ranks may build at the same time: each leaves a whole file
    return library


def source_digest() -> str:
    """Return the digest of the sources, 16 hexadecimal digits."""
    return hashlib.sha256(b"".join((HERE / name).read_bytes() for name in SOURCES)).hexdigest()[:16]


def nvcc() -> str | None:
    """Return the path of nvcc: on PATH, below CUDA_HOME or in /usr/local/cuda."""
    places = [
        Path(root) / "bin" / "nvcc" for root in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if root
    ]
    return shutil.which("nvcc") or next((str(place) for place in places if place.exists()), None)


def run_compiler(command: list[str]) -> str:
    """Run a compiler and return what it printed.

    Raises:
        DistllmError: it failed.
    """
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode:
        raise DistllmError(
            f"{Path(command[0]).name} failed:\n{done.stdout[-2000:]}",
            where=" ".join(command),
            remedy="install what the compiler misses, or do without: engine.kernels=torch",
        )
    return done.stdout


def _command(target: Target, arch: str | None) -> list[str]:
    include = Path(torch.__file__).parent / "include"
    common = ["-std=c++20", "-O2", STABLE_ABI, "-DTORCH_STABLE_ONLY", f"-I{include}", "-shared"]
    if target == "cpu":
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
        if compiler is None:
            raise MissingDependency("no C++ compiler is on PATH", remedy="apt-get install g++")
        # Products must be rounded before they are added, or results would depend on the host's instructions.
        return [compiler, "-x", "c++", *common, "-fPIC", "-ffp-contract=off", "-Wno-unknown-pragmas"]
    compiler = nvcc()
    if compiler is None:
        raise MissingDependency(
            "the CUDA kernels are compiled once on the machine that runs them, and nvcc is not here",
            where="optim.name",
            remedy="install the CUDA toolkit (nvcc on PATH or CUDA_HOME), or use optim=adamw",
        )
    if arch is None:
        major, minor = torch.cuda.get_device_capability()
        arch = f"sm_{major}{minor}"
    return [compiler, *common, "-Xcompiler", "-fPIC", f"-arch={arch}"]
