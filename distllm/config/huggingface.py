"""Hugging Face's ``config.json`` to and from the keys of ``model``.

Each direction is checked against the other: options that an architecture cannot express are refused, never
dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distllm.config.huggingface_models import ARCHITECTURES
from distllm.config.peft import base_of, with_settled_lora
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.schema_lora import LoraConfig
from distllm.config.schema_model import ModelConfig
from distllm.config.shape import ModelShape, settle_shape
from distllm.config.validate import build
from distllm.config.weight_files import Alike, alike_weights
from distllm.errors import ConfigError
from distllm.fsio import read_json

Json = Mapping[str, Any]
# Keys for training only, or without a counterpart: they are neither read from a config.json nor written to
# one.
OWN_KEYS = ("init_from", "dropout", "layer_drop", "pooling", "init_std", "max_positions", "lora", "mup")


def no_model(folder: Path) -> ConfigError:
    """Return the error for a folder without a config.json."""
    return ConfigError(
        f"{folder} holds no config.json",
        where=str(folder),
        remedy="name a folder written by transformers' save_pretrained or by distllm export",
    )


def read_folder(folder: Path) -> ModelConfig:
    """Return the model in a folder, from its config.json; its weights decide whether embeddings are tied.

    For the folder of an adapter, that is the adapter's base model.

    As in transformers, an output projection that is stored and differs from the embedding is not tied to it,
    whatever the config.json says: that of T5 1.1 folders saved by transformers is wrong here.

    Raises:
        ConfigError: it has no config.json, or one that cannot be read.
    """
    folder = base_of(folder)
    if not (folder / "config.json").is_file():
        raise no_model(folder)
    content = read_json(folder / "config.json")
    model = read_config(content)
    found = ARCHITECTURES[content["model_type"]]
    alike = alike_weights(folder, *found.twins)
    if alike is Alike.DIFFERENT:
        return dataclasses.replace(model, tie_embeddings=False)
    if alike is Alike.ALONE and found.always_tied:
        return dataclasses.replace(model, tie_embeddings=True)
    return model


def model_type_of(folder: Path) -> str:
    """Return the architecture of the model in a folder, or of the base model of an adapter."""
    return str(read_json(base_of(folder) / "config.json")["model_type"])


def read_config(content: Json) -> ModelConfig:
    """Return the model that a ``config.json`` describes.

    Raises:
        ConfigError: its architecture, or an option of it, is not known, or it is not whole.
    """
    name = str(content.get("model_type"))
    found = ARCHITECTURES.get(name)
    if found is None:
        raise ConfigError(
            f"models of type {name!r} cannot be read",
            where="model_type",
            remedy=f"use one of {', '.join(ARCHITECTURES)}",
        )
    if content.get("quantization_config"):
        raise ConfigError(
            "quantised weights cannot be read",
            where="quantization_config",
            remedy="load the model with transformers, call dequantize(), and save the result",
        )
    try:
        said = found.read({**found.unsaid, **content})
        keys = {"vocab_size": content["vocab_size"], "init_std": content.get("initializer_range", 0.02)}
    except KeyError as error:
        raise _broken(name, f"lacks {error.args[0]}") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise _broken(name, f"is invalid: {error}") from error
    problems = Problems()
    model = build(ModelConfig, {**keys, **said}, problems)
    if problems.found:
        raise _broken(name, f"is invalid: {problems.found[0].cause}")
    return model


def _broken(name: str, what: str) -> ConfigError:
    return ConfigError(
        f"the config.json of a {name} {what}",
        where="config.json",
        remedy="download the folder again, or correct the values",
    )


def write_config(shape: ModelShape) -> tuple[str, dict[str, Any]]:
    """Return the ``model_type`` that fits a shape, and the fields of its ``config.json``.

    Raises:
        ConfigError: no architecture of transformers can express the shape.
    """
    name = _fitting(shape)
    if name is None:
        raise ConfigError(
            f"transformers has no architecture for a {shape.family} with {shape.positions} positions",
            where="model.positions",
            remedy="export a GPT-2, Llama, Mistral, Qwen, OLMo 2, Mixtral, BERT, ModernBERT or T5",
        )
    content = {
        "model_type": name,
        "vocab_size": shape.vocab_size,
        "initializer_range": shape.init_std,
        "tie_word_embeddings": shape.tie_embeddings,
        **ARCHITECTURES[name].write(shape),
    }
    again = settle_shape(read_config(content), shape.vocab_size, shape.max_seq_len)
    lost = [key for key in _differences(shape, again) if key not in OWN_KEYS]
    if lost:
        raise ConfigError(
            f"{name} of transformers cannot express this model's {', '.join(lost)}",
            where="model",
            remedy=f"train with the options of {name}, or keep the model in distllm",
        )
    return name, content


def _differences(shape: ModelShape, other: ModelShape) -> list[str]:
    """Return the fields in which two shapes compute differently."""
    idle = set()
    if shape.positions != "rope":
        idle |= {"rope", "rope_theta", "rope_theta_local"}
    if shape.positions != "relative":
        idle |= {"relative_buckets", "relative_distance"}
    if not any(shape.windows):
        idle.add("rope_theta_local")
    if not shape.num_experts:
        idle |= {"experts_per_token", "balance_loss"}
    if shape.family != "encoder_decoder":
        idle.add("num_encoder_layers")
    names = (field.name for field in dataclasses.fields(ModelShape) if field.name not in idle)
    return [name for name in names if not _same(getattr(shape, name), getattr(other, name))]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-9 * max(1.0, abs(one))
    return bool(one == other)


def _fitting(shape: ModelShape) -> str | None:
    """Return the ``model_type`` closest to a shape."""
    if shape.family == "encoder_decoder":
        return "t5" if shape.positions == "relative" else None
    if shape.family == "encoder":
        return {"learned": "bert", "rope": "modernbert"}.get(shape.positions)
    if shape.positions != "rope":
        return "gpt2" if shape.positions == "learned" else None
    if shape.qk_norm != "none":
        return "olmo2" if shape.norm_place == "output" else "qwen3"
    if shape.num_experts:
        return "mixtral"
    if shape.attention_bias and not shape.attention_out_bias:
        return "qwen2"
    return "mistral" if any(shape.windows) else "llama"


def with_imported(config: Config, problems: Problems) -> Config:
    """Return the configuration with the keys that ``model.init_from`` and ``model.lora.init_from`` determine.

    A key that was set to another value is a problem. So is a missing folder, unless the keys are set
    already, as in the configuration that a run has stored.
    """
    model = config.model
    for folder, settled, read in (
        (model.init_from, model.vocab_size is not None, _with_model),
        (model.lora.init_from, model.lora.rank > 0, _with_adapters),
    ):
        if folder is None or (settled and _is_gone(Path(folder))):
            continue
        try:
            model = read(model, folder, problems)
        except ConfigError as error:
            problems.found.append(error)
            break
    return dataclasses.replace(config, model=model)


def _is_gone(folder: Path) -> bool:
    try:
        return not (base_of(folder) / "config.json").is_file()
    except ConfigError:  # the model below an adapter
        return True


def _with_model(asked: ModelConfig, folder: str, problems: Problems) -> ModelConfig:
    """Return the model of a folder, with the keys of ``asked`` that the folder does not determine."""
    found = read_folder(Path(folder))
    names = [field.name for field in dataclasses.fields(ModelConfig) if field.name not in OWN_KEYS]
    for name in names:
        mine, theirs = getattr(asked, name), getattr(found, name)
        problems.check(
            mine in (theirs, getattr(ModelConfig(), name)),
            f"model.{name} is {mine}, but the model in {folder} has {theirs}",
            keys=[f"model.{name}", "model.init_from"],
            remedy="use model=hf, which takes all keys from the folder",
        )
    own = {name: getattr(asked, name) for name in OWN_KEYS if name != "max_positions"}
    return dataclasses.replace(found, **own)


def _with_adapters(asked: ModelConfig, folder: str, problems: Problems) -> ModelConfig:
    """Return the model with the adapter settings that the folder of an adapter determines."""
    if asked.init_from is None:
        return asked  # reported with the problems of the model
    problems.check(
        Path(asked.init_from).resolve() != Path(folder).resolve(),
        f"{folder} would be applied twice: to the weights, and as adapters to continue from",
        keys=["model.init_from", "model.lora.init_from"],
        remedy="set model.init_from to the adapter's base model",
    )
    lora, found = asked.lora, with_settled_lora(asked.lora, model_type_of(Path(asked.init_from)))
    for name in ("rank", "alpha", "targets"):
        mine, theirs = getattr(lora, name), getattr(found, name)
        problems.check(
            mine in (theirs, getattr(LoraConfig(), name)),
            f"model.lora.{name} is {mine}, but the adapter in {folder} has {theirs}",
            keys=[f"model.lora.{name}", "model.lora.init_from"],
            remedy=f"leave out model.lora.{name}: the folder determines it",
        )
    return dataclasses.replace(asked, lora=found)
