"""What the launchers would launch on an architecture that is not here: each kernel's digest, and its code.

The launchers run on meta tensors under a driver that only names a target; Triton specialises the arguments
as it would on the device, and nothing is launched. A digest covers all that decides the code: the source
with what it calls, types, alignment, constants, options, target and the compiler's version. The driver
stays: a process that has done this launches nothing afterwards.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from distllm.kernels.device import compiling_for

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
GFX942 = 942


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel as a compiler left it.

    Attributes:
        kernel: the function's name.
        arch: 80, 90, 100, 120, or 942 for AMD's gfx942.
        registers: of a thread.
        stack: bytes of local memory of a thread; anything but 0 is a spill.
        shared: bytes of shared memory of a program.
        warps: of a program.
        ptx: the virtual assembly, empty for AMD.
        sass: the machine code as text.
    """

    kernel: str
    arch: int
    registers: int
    stack: int
    shared: int
    warps: int
    ptx: str
    sass: str

    def count(self, instruction: str) -> int:
        """Return how many machine instructions begin with ``instruction``."""
        return len(
            re.findall(
                rf"^\s*(?:/\*\w+\*/)?\s*(?:@!?\w+\s+)?{re.escape(instruction)}", self.sass, re.MULTILINE
            )
        )


class _NoDevice:
    """The part of a Triton driver that compilation asks for."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        return self.arch  # Triton caches by device: each architecture is one

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("hip", "gfx942", 64) if self.arch == GFX942 else GPUTarget("cuda", self.arch, 32)


@dataclass(frozen=True)
class Launched:
    """One kernel that a launcher would start.

    Attributes:
        kernel: the function's name.
        digest: of all that decides its code, 16 hexadecimal digits.
        compile: compiles it; raises RuntimeError where the compiler fails.
    """

    kernel: str
    digest: str
    compile: Callable[[], Compiled]


def launched(launch: Callable[[], Any], arch: int) -> list[Launched]:
    """Return every kernel that ``launch`` would start on ``arch``, each once, without compiling it."""
    found: dict[str, Launched] = {}
    stock_run, stock_compile = JITFunction.run, JITFunction._do_compile

    def run(function: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        del warmup
        seen = stock_run(function, *arguments, grid=grid, warmup=True, **named)
        found.setdefault(seen.digest, seen)

    def note(
        function: Any, key: Any, signature: Any, device: Any, constants: Any, options: Any, attributes: Any,
        _warmup: bool,
    ) -> Launched:  # fmt: skip
        kernels, _, target, backend, _ = function.device_caches[device]
        source = function.ASTSource(function, signature, constants, attributes)
        parts = (source.hash(), options.hash(), str(target), backend.hash(), triton.__version__)
        digest = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

        def compile_it() -> Compiled:
            return _measure(function.compile(source, target=target, options=options.__dict__), arch)

        kernels[key] = Launched(function.fn.__name__, digest, compile_it)
        return kernels[key]

    _forget_line_numbers()
    driver.set_active(_NoDevice(arch))
    JITFunction.run, JITFunction._do_compile = run, note
    try:
        with compiling_for(80 if arch == GFX942 else arch):
            launch()
    finally:
        JITFunction.run, JITFunction._do_compile = stock_run, stock_compile
    return list(found.values())


def _forget_line_numbers() -> None:
    """Take the place of a function in its file out of its digest: a new line above changes no code."""
    for name, module in list(sys.modules.items()):
        if name.startswith("distllm.kernels"):
            for function in vars(module).values():
                if isinstance(function, JITFunction):
                    function.starting_line_number = 0


def _measure(kernel: Any, arch: int) -> Compiled:
    shared, warps = kernel.metadata.shared, kernel.metadata.num_warps
    if arch == GFX942:
        text = kernel.asm["amdgcn"]
        registers, stack = (_number(rf"; {word}: (\d+)", text) for word in ("NumVgprs", "ScratchSize"))
        return Compiled(kernel.name, arch, registers, stack, shared, warps, "", text)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        sass = _run("cuobjdump", "-sass", file.name)
    registers, stack = _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage)
    return Compiled(kernel.name, arch, registers, stack, shared, warps, kernel.asm["ptx"], sass)


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the compiler's report holds no {pattern!r}: its format has changed")
    return int(found[1])
