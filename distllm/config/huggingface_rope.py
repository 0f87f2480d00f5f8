"""Rotary positions in the fields of ``config.json``, both ways; those of older transformers are read too."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from distllm.config.schema_model import RopeConfig
from distllm.config.shape import ModelShape
from distllm.errors import ConfigError

Json = Mapping[str, Any]
_KINDS = ("linear", "llama3", "yarn")
_THEIR_NAMES = {"original_len": "original_max_position_embeddings"}


def read_rope(content: Json) -> dict[str, Any]:
    """Return the keys of ``model`` for rotary positions.

    Raises:
        ConfigError: they are stretched in a way that the block does not have.
    """
    # Where both are given, transformers takes the older field.
    given = content.get("rope_scaling") or content.get("rope_parameters") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if any(isinstance(value, Mapping) for value in given.values()):
        raise _unreadable("of their own for kinds of layers")
    if kind not in ("default", *_KINDS):
        raise _unreadable(f"of type {kind!r}")
    share = given.get("partial_rotary_factor", content.get("partial_rotary_factor"))
    if share not in (None, 1):
        raise _unreadable(f"that turn a share of {share} of the channels")
    theta = {"rope_theta": given.get("rope_theta") or content["rope_theta"]}
    if kind == "default":
        return theta
    return {**theta, "rope": {"scaling": kind, **_stretching(kind, given, content)}}


def _stretching(kind: str, given: Json, content: Json) -> dict[str, Any]:
    """Return the keys of ``model.rope`` other than the kind."""
    names = {field.name: _THEIR_NAMES.get(field.name, field.name) for field in dataclasses.fields(RopeConfig)}
    values = {ours: given[theirs] for ours, theirs in names.items() if given.get(theirs) is not None}
    if kind == "linear":
        return {"factor": given["factor"]}
    original = content.get("original_max_position_embeddings") or values.get("original_len")
    values["original_len"] = original or content["max_position_embeddings"]
    if kind == "llama3":
        return {"factor": given["factor"], **values}
    if not given.get("truncate", True):
        raise _unreadable("of type 'yarn' with truncate=false")
    values.setdefault("factor", content["max_position_embeddings"] / values["original_len"])
    mscale, all_dim = given.get("mscale"), given.get("mscale_all_dim")
    if "attention_factor" not in values and mscale and all_dim:
        factor = values["factor"]
        values["attention_factor"] = _sharpening(factor, mscale) / _sharpening(factor, all_dim)
    return values


def _sharpening(factor: float, mscale: float) -> float:
    """Return DeepSeek's factor of rotated queries and keys."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _unreadable(what: str) -> ConfigError:
    return ConfigError(
        f"rotary positions {what} cannot be read",
        where="rope_parameters",
        remedy="use a model with default, linear, llama3 or yarn positions",
    )


def write_rope(shape: ModelShape) -> dict[str, Any]:
    """Return the fields of a config.json that say how a shape rotates."""
    rope = shape.rope
    said: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if rope.scaling != "none":
        said |= {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling in ("llama3", "yarn"):
        said["original_max_position_embeddings"] = rope.original_len
    if rope.scaling == "llama3":
        said |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.scaling == "yarn":
        said |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        said |= {"attention_factor": rope.attention_factor} if rope.attention_factor else {}
    return {"rope_theta": shape.rope_theta, "rope_parameters": said}
