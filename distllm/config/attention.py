"""The implementations of attention, what each supports, and which one a layer gets.

A layer gets the first one of an order that supports its features and that the machine has. Features are
never dropped: if none fits, the error says what each one is missing. Imports no torch: the planner,
`distllm explain` and `distllm doctor` use the same table on a login node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from distllm.config.schema import Config
from distllm.errors import ConfigError

Kernels: TypeAlias = Literal["torch", "triton", "auto"]
Name: TypeAlias = Literal["documents", "fa4", "fa3", "cudnn", "triton", "flash", "flex", "sdpa", "source"]
Feature: TypeAlias = Literal[
    "documents", "cross", "grouped", "window", "softcap", "bias", "alibi", "sinks", "lse"
]
WORDS: Mapping[Feature, str] = {
    "documents": "packed documents",
    "cross": "attention to another sequence",
    "grouped": "grouped key/value heads",
    "window": "a sliding window",
    "softcap": "soft-capped scores",
    "bias": "a bias by distance (model.positions=relative)",
    "alibi": "ALiBi slopes (model.positions=alibi)",
    "sinks": "attention sinks",
    "lse": "the log-sum-exp as a result",
}
TRITON_HEAD_DIMS = (64, 96, 128, 192, 256)
_HALF = frozenset({"bf16", "fp16"})
_ALL_DTYPES = _HALF | {"fp32"}
_ALL_HEADS = range(1, 1025)
_BY_EIGHT = range(8, 257, 8)


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The requirements of one layer's attention.

    Attributes:
        device: cpu or cuda.
        dtype: bf16, fp16, fp32 or fp64.
        head_dim: width of a head.
        features: features beyond plain attention of whole rows, causal or not.
    """

    device: str
    dtype: str
    head_dim: int
    features: frozenset[Feature] = frozenset()


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine offers.

    Attributes:
        capability: the GPU's compute capability; None without a GPU.
        packages: the installed packages among those that backends need.
        interpreted: whether Triton interprets its kernels on the CPU (in tests).
    """

    capability: tuple[int, int] | None = None
    packages: frozenset[str] = frozenset()
    interpreted: bool = False


@dataclass(frozen=True, slots=True)
class Backend:
    """One implementation.

    Attributes:
        name: its name in notes and tables.
        what: a description for people.
        device: the device it runs on; None: both.
        features: the features it supports.
        dtypes: the number formats it supports.
        head_dims: the head sizes it supports.
        capabilities: major versions of the compute capabilities it supports; None: all.
        package: the distribution it needs besides torch.
        only: it is used only for layers with all of these features.
    """

    name: Name
    what: str
    device: Literal["cpu", "cuda"] | None
    features: frozenset[Feature]
    dtypes: frozenset[str] = _HALF
    head_dims: range | tuple[int, ...] = _BY_EIGHT
    capabilities: tuple[int, ...] | None = None
    package: str | None = None
    only: frozenset[Feature] = frozenset()

    def unmet(self, spec: AttentionSpec) -> str | None:
        """Return why it cannot compute a spec on any machine; None if it can."""
        missing = [WORDS[feature] for feature in WORDS if feature in spec.features - self.features]
        if missing:
            return "does not support " + ", ".join(missing)
        if not self.only <= spec.features:
            return "is for " + " with ".join(WORDS[feature] for feature in sorted(self.only)) + " only"
        if spec.dtype not in self.dtypes:
            return f"does not compute in {spec.dtype}"
        if spec.head_dim not in self.head_dims:
            return f"has no head size {spec.head_dim}"
        return None

    def absent(self, machine: Machine, device: str) -> str | None:
        """Return why it cannot run on this machine's ``device``; None if it can."""
        if self.package is not None and self.package not in machine.packages:
            return f"needs the package {self.package}"
        if self.name == "triton" and machine.interpreted:
            return None
        if self.device not in (None, device):
            return f"runs on {self.device}"
        if self.capabilities is None or device != "cuda":
            return None
        if machine.capability is None:
            return "needs a GPU"
        if machine.capability[0] not in self.capabilities:
            return f"is not made for compute capability {'.'.join(map(str, machine.capability))}"
        return None


def _features(*names: Feature) -> frozenset[Feature]:
    return frozenset(names)


_FLASH = _features("documents", "cross", "grouped", "window", "lse")
_MASKED = _features("documents", "cross", "grouped", "window", "softcap", "bias", "alibi")
BACKENDS: Mapping[Name, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            "documents", "torch's fused CPU attention, one call a document", "cpu", _MASKED,
            _ALL_DTYPES | {"fp64"}, _ALL_HEADS, only=_features("documents"),
        ),
        Backend(
            "fa4", "FlashAttention-4 through torch", "cuda", _FLASH, head_dims=range(8, 129, 8),
            capabilities=(9, 10), package="flash-attn-4",
        ),
        Backend(
            "fa3", "FlashAttention-3 through torch", "cuda", _FLASH, capabilities=(9,),
            package="flash-attn-3",
        ),
        Backend(
            "cudnn", "cuDNN's attention through torch, whole rows", "cuda", _features("grouped"),
            head_dims=range(8, 129, 8), capabilities=(8, 9, 10, 12),
        ),
        Backend(
            "triton", "distllm's Triton kernels", "cuda",
            frozenset(WORDS) - {"bias"}, _ALL_DTYPES, TRITON_HEAD_DIMS, (8, 9, 10, 12), "triton",
        ),
        Backend(
            "flash", "torch's FlashAttention-2", "cuda", _FLASH, capabilities=(8, 9, 10, 12),
        ),
        Backend(
            "flex", "torch's flex_attention, compiled", "cuda", _MASKED, _ALL_DTYPES, (16, 32, 64, 128, 256),
            (8, 9, 10, 12), "triton",
        ),
        Backend(
            "sdpa", "torch's choice for whole rows, a mask for all else, written out under a soft cap", None,
            _MASKED, _ALL_DTYPES | {"fp64"}, _ALL_HEADS,
        ),
        Backend(
            "source", "the same, where a packed source need not be covered by what attends to it", None,
            _MASKED, _ALL_DTYPES | {"fp64"}, _ALL_HEADS, only=_features("documents", "cross"),
        ),
    )
}  # fmt: skip
# torch includes backends of other packages that it can call. flex is left out there and comes late under
# auto: it compiles for each shape, and wrong gradients were reported (pytorch issue 158212).
ORDERS: Mapping[Kernels, tuple[Name, ...]] = {
    "torch": ("documents", "fa4", "fa3", "cudnn", "flash", "sdpa"),
    "triton": ("source", "triton"),
    "auto": ("documents", "fa4", "fa3", "cudnn", "triton", "flash", "flex", "sdpa"),
}
PACKAGES = tuple(sorted({backend.package for backend in BACKENDS.values() if backend.package}))
# Combinations of features that backends do not support, although they support each feature alone.
_APART: tuple[tuple[frozenset[Name], frozenset[Feature], str], ...] = (
    (
        frozenset({"fa4", "fa3", "flash", "triton", "flex"}), _features("documents", "cross"),
        "wants every key of a packed source to be attended to",
    ),
    (
        frozenset({"fa4", "fa3", "flash", "triton"}), _features("window", "cross"),
        "counts a window over another sequence from its end",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen backend, and why: which ones were passed over for what reason."""

    name: Name
    reason: str


def choose(spec: AttentionSpec, machine: Machine, order: tuple[Name, ...]) -> Choice:
    """Return the first backend of ``order`` that computes ``spec`` on this machine.

    Raises:
        ConfigError: none does; the message gives the reason for each.
    """
    passed: list[str] = []
    for name in order:
        why = _why_not(name, spec) or BACKENDS[name].absent(machine, spec.device)
        if why is None:
            over = f"; not {', '.join(passed)}" if passed else ""
            return Choice(name, BACKENDS[name].what + over)
        passed.append(f"{name} ({why})")
    raise ConfigError(
        f"no attention computes {describe(spec)}: {', '.join(passed)}",
        where="engine.kernels",
        remedy="engine.kernels=torch" if "sdpa" not in order else "leave the feature out",
    )


def candidates(spec: AttentionSpec, order: tuple[Name, ...]) -> list[Name]:
    """Return the backends of ``order`` that compute ``spec`` on some machine."""
    names = [name for name in order if _why_not(name, spec) is None]
    return [name for name in names if BACKENDS[name].device in (None, spec.device)]


def refusal(spec: AttentionSpec, order: tuple[Name, ...]) -> str:
    """Return why no backend of ``order`` computes ``spec``, on any machine."""
    each = ", ".join(f"{name} ({_why_not(name, spec)})" for name in order)
    return f"no attention computes {describe(spec)}: {each}"


def derivation(spec: AttentionSpec, order: tuple[Name, ...]) -> tuple[str, str]:
    """Return the possible backends of a kind of layer before its machine is known, and how one is chosen.

    On a CPU that is one name; on a GPU all that compute ``spec``, in order: the machine's first one is used.
    """
    names = candidates(spec, order)
    if spec.device == "cpu":
        names = names[:1]
    out = [f"{name} {why}" for name in order if name not in names and (why := _why_not(name, spec))]
    formula = f"the first the machine has that computes {describe(spec)}"
    return " > ".join(names), formula + (f"; {', '.join(out)}" if out else "")


def _why_not(name: Name, spec: AttentionSpec) -> str | None:
    apart = (why for names, together, why in _APART if name in names and together <= spec.features)
    return BACKENDS[name].unmet(spec) or next(apart, None)


def describe(spec: AttentionSpec) -> str:
    """Return a spec in words."""
    features = [WORDS[feature] for feature in WORDS if feature in spec.features] or ["whole rows"]
    return f"{', '.join(features)} in {spec.dtype} with head size {spec.head_dim} on {spec.device}"


def attention_specs(config: Config) -> dict[str, AttentionSpec]:
    """Return what a model's layers need while it trains, by kind: global, sliding, source."""
    model = config.model
    always: set[Feature] = {"documents"} if config.data.mask_documents else set()
    if (model.num_kv_heads or model.num_heads) != model.num_heads:
        always.add("grouped")
    if model.attention_softcap:
        always.add("softcap")
    by_positions: Mapping[str, set[Feature]] = {"alibi": {"alibi"}, "relative": {"bias"}}
    own: set[Feature] = always | by_positions.get(model.positions, set())
    kinds: dict[str, set[Feature]] = {}
    slides = set(model.window_pattern) if model.sliding_window else {"G"}
    if "G" in slides:
        kinds["global"] = own
    if "L" in slides:
        kinds["sliding"] = own | {"window"}
    if model.family == "encoder_decoder":
        kinds["source"] = always | {"cross"}
    head_dim = model.head_dim or model.hidden_size // model.num_heads
    device, dtype = config.cluster.device, config.precision.compute
    return {
        kind: AttentionSpec(device, dtype, head_dim, frozenset(features)) for kind, features in kinds.items()
    }
