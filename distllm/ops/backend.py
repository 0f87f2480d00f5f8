"""Which kernels the operations run on, chosen once per process, and why.

Attention has an order of backends (`distllm.config.attention`); ``engine.kernels`` names it. Without a
choice, a process uses torch's fused attention, with a mask on a GPU. Norms,
rotary positions, gates and the cross-entropy are distllm's under ``triton``, and torch's otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata

import torch
from torch import Tensor

from distllm.config.attention import (
    BACKENDS,
    ORDERS,
    PACKAGES,
    TRITON_HEAD_DIMS,
    AttentionSpec,
    Choice,
    Feature,
    Kernels,
    Machine,
    Name,
    choose,
)
from distllm.errors import ConfigError, MissingDependency

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
_IMPLEMENTATIONS: Mapping[Name, str] = {"fa4": "FA4", "fa3": "FA3"}
_DEFAULT: tuple[Name, ...] = ("documents", "sdpa")


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """The kernels of this process with the reasons; ``attention`` by the needs of a layer."""

    name: Kernels
    reason: str
    attention: Mapping[AttentionSpec, Choice]


@dataclass(frozen=True, slots=True)
class _State:
    kernels: Kernels
    order: tuple[Name, ...]
    machine: Machine
    serving: frozenset[Name]


_state = [_State("torch", _DEFAULT, Machine(), frozenset(_DEFAULT))]


def use_kernels(name: Kernels, device: torch.device, specs: Iterable[AttentionSpec] = ()) -> KernelChoice:
    """Choose the kernels for the rest of this process.

    Args:
        name: the order, ``engine.kernels``.
        device: of this rank.
        specs: what the layers need; nothing: anything the order serves.

    Raises:
        MissingDependency: triton is not installed.
        ConfigError: the device has no Triton kernels, or no backend computes what a layer needs.
    """
    _state[0] = _State("torch", _DEFAULT, Machine(), frozenset(_DEFAULT))
    machine = machine_of(device)
    reason = _reason(name, device, machine)
    order = ORDERS[name]
    attention = {one: choose(one, machine, order) for one in specs}
    packed = [replace(one, features=one.features | {"documents"}) for one in attention]  # by other tasks
    names = {choose(one, machine, order).name for one in (*attention, *packed)}
    serving = frozenset(names or order)
    for backend in _IMPLEMENTATIONS.keys() & serving if attention else ():
        torch.nn.attention.activate_flash_attention_impl(_IMPLEMENTATIONS[backend])
    _state[0] = _State(name, order, machine, serving)
    return KernelChoice(name, reason, attention)


def machine_of(device: torch.device) -> Machine:
    """Return what this machine has for ``device``."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return Machine(capability, installed(PACKAGES), interpreted())


def installed(packages: Iterable[str]) -> frozenset[str]:
    """Return those of ``packages`` that are installed."""
    found = set()
    for package in packages:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        found.add(package)
    return frozenset(found)


def _reason(name: Kernels, device: torch.device, machine: Machine) -> str:
    """Return why ``engine.kernels=name`` can be had here."""
    if name == "torch":
        return "engine.kernels=torch: torch's fused operations, the choice for every device"
    if name == "auto":
        return "engine.kernels=auto: the first attention that computes what is asked; all else is torch's"
    if "triton" not in machine.packages:
        raise MissingDependency(
            "engine.kernels=triton needs the package triton",
            where="engine.kernels",
            remedy="pip install 'distllm[kernels]', or engine.kernels=torch",
        )
    if machine.capability is not None:
        from distllm.kernels.device import row_of_capability

        try:
            row = row_of_capability(machine.capability)
        except ValueError as error:
            raise ConfigError(str(error), where="engine.kernels", remedy="engine.kernels=torch") from error
        return f"engine.kernels=triton: launch parameters of sm_{row}, triton {metadata.version('triton')}"
    if machine.interpreted:
        return "engine.kernels=triton in Triton's interpreter (TRITON_INTERPRET=1): for tests"
    raise ConfigError(
        f"engine.kernels=triton needs a CUDA device, and this rank has {device.type}",
        where="engine.kernels",
        remedy="engine.kernels=torch",
    )


def interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def serve(device: str, dtype: torch.dtype, head_dim: int, *features: Feature | None) -> Name:
    """Return the backend that attends in this process; features that are None are not needed.

    Raises:
        ConfigError: none computes this.
    """
    if _state[0].machine.interpreted and triton_chosen():
        head_dim = TRITON_HEAD_DIMS[0]  # the interpreter has any width
    wanted = frozenset(feature for feature in features if feature is not None)
    return _chosen(AttentionSpec(device, DTYPES[dtype], head_dim, wanted), _state[0])


# The compiler takes a call's result as it is, in place of tracing what needs no tensor: this is all that
# torch.compiler.assume_constant_result does, which would import the compiler.
serve._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=256)
def _chosen(spec: AttentionSpec, state: _State) -> Name:
    return choose(spec, state.machine, state.order).name


def serving() -> frozenset[Name]:
    """Return the backends that this process may take, for which batches must be prepared."""
    return _state[0].serving


def triton_chosen() -> bool:
    """Whether this process uses the Triton kernels for everything that they compute."""
    return _state[0].kernels == "triton"


def triton_serves(x: Tensor) -> bool:
    """Whether the Triton kernels are in use and take a tensor like ``x``."""
    return triton_chosen() and DTYPES.get(x.dtype) in BACKENDS["triton"].dtypes
