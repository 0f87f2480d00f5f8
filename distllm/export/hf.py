"""A trained model as a folder that `transformers` loads.

The folder is written under a temporary name and renamed when it is complete. Weights are written in
shards; one shard and its encoded bytes are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from distllm.config.huggingface import write_config
from distllm.config.huggingface_models import ARCHITECTURES
from distllm.config.peft import FACTS
from distllm.config.shape import ModelShape
from distllm.data.tokenizer import Tokenizer
from distllm.errors import CheckpointError, ConfigError
from distllm.export.card import model_card
from distllm.export.names import rules
from distllm.export.sentences import write_sentence_encoder
from distllm.fsio import atomic_directory, atomic_write_bytes, atomic_write_json, atomic_write_text
from distllm.models.heads import HeadName
from distllm.models.init import bare_model

SHARD_BYTES = 2**30
_WEIGHTS = "model.safetensors"


def export_hf(
    model_state: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    shape: ModelShape,
    tokenizer: Tokenizer,
    out: Path,
    facts: Mapping[str, Any],
    shard_bytes: int = SHARD_BYTES,
    head: HeadName = "masked_lm",
) -> None:
    """Write the folder ``out``: weights, configuration, tokenizer, model card and facts.

    Args:
        model_state: weights of a model by parameter name; an iterable is read once.
        shape: the model's.
        tokenizer: the one it was trained with.
        out: the folder; an earlier export there is replaced.
        facts: plain values of the run, for the card and ``distllm.json``.
        shard_bytes: largest file of weights; a larger tensor gets a file of its own.
        head: the head of an encoder.

    Raises:
        ConfigError: ``out`` holds something that is not an export, or transformers has no such model.
        CheckpointError: a weight is missing, unknown or of the wrong size.
        StorageError: the folder cannot be written.
    """
    pairs = model_state.items() if isinstance(model_state, Mapping) else model_state
    model_type, content = write_config(shape)
    name = _class_of(model_type, head)
    if name is None:
        raise ConfigError(
            f"transformers has no {model_type} for the head {head} that computes what ours does",
            where="task.name",
            remedy="export a BERT, or keep the model in distllm",
        )
    with atomic_directory(Path(out), FACTS) as folder:
        _write_weights(_renamed(pairs, shape, model_type, head), folder, shard_bytes)
        tokenizer.save(folder, max_length=shape.max_seq_len, encloses=head != "masked_lm")
        eot_id, num_ids = tokenizer.eot_id, tokenizer.vocab_size
        ids = _special_ids(shape, tokenizer)
        said = {"architectures": [name], **content, **ids, "torch_dtype": "float32"}
        atomic_write_json(folder / "config.json", said)
        atomic_write_json(folder / "generation_config.json", generation_config(shape, eot_id, num_ids))
        embeds, eot = head == "embedding", tokenizer.decode([eot_id])
        card = model_card(shape, facts, eot, model_type, name, embeds=embeds)
        atomic_write_text(folder / "README.md", card)
        if embeds:
            write_sentence_encoder(folder, shape)
        atomic_write_json(folder / FACTS, {"kind": "distllm export", "facts": dict(facts)})


def is_known_to_transformers(shape: ModelShape, head: HeadName) -> bool:
    """Whether a model of this shape, with this head on an encoder, can be exported."""
    try:
        return _class_of(write_config(shape)[0], head) is not None
    except ConfigError:
        return False


def _class_of(model_type: str, head: HeadName) -> str | None:
    return ARCHITECTURES[model_type].classes.get("lm" if head == "masked_lm" else head)


def _special_ids(shape: ModelShape, tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids that ``config.json`` names."""
    kinds = {"decoder": (), "encoder": ("pad", "sep"), "encoder_decoder": ("pad", "decoder_start")}
    ids = {f"{kind}_token_id": tokenizer.eot_id for kind in ("bos", "eos", *kinds[shape.family])}
    return ids | ({"cls_token_id": tokenizer.bot_id} if shape.family == "encoder" else {})


def generation_config(shape: ModelShape, eot_id: int, num_ids: int) -> dict[str, Any]:
    """Return the content of ``generation_config.json``; padding ids of the vocabulary are suppressed."""
    padding = list(range(num_ids, shape.vocab_size))
    suppress = {"suppress_tokens": padding} if padding else {}
    return {"bos_token_id": eot_id, "eos_token_id": eot_id, "pad_token_id": eot_id, **suppress}


def _renamed(
    pairs: Iterable[tuple[str, Tensor]], shape: ModelShape, model_type: str, head: HeadName
) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights under the names of `transformers`; check that each comes exactly once."""
    with torch.device("meta"):
        bare = bare_model(shape, head=head)
    bare.tie_weights()
    wanted = {name: tuple(weight.shape) for name, weight in bare.named_parameters()}
    by_name = {rule.ours: rule for rule in rules(model_type, shape, wanted)}
    tied = bare.state_dict().keys() - wanted.keys()
    for name, weight in pairs:
        if name in tied:
            continue
        size = wanted.pop(name, None)
        if tuple(weight.shape) != size:
            raise CheckpointError(
                f"{name} of size {tuple(weight.shape)} does not fit the model: {size or 'no such weight'}",
                where=name,
                remedy="export with the configuration the weights were trained with",
            )
        yield from by_name[name].split(weight.detach())
    if wanted:
        raise CheckpointError(
            f"{len(wanted)} weights are missing, such as {min(wanted)}",
            where=min(wanted),
            remedy="export with the configuration the weights were trained with",
        )


def _write_weights(pairs: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int) -> None:
    """Write shards, then rename them as `transformers` expects, which depends on their number."""
    shards: list[dict[str, int]] = []
    for tensors in _groups(pairs, shard_bytes):
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        content = safetensors.torch.save(whole, metadata={"format": "pt"})
        atomic_write_bytes(folder / f"{len(shards)}.safetensors", content)
        shards.append({name: tensor.nbytes for name, tensor in tensors.items()})
    if len(shards) == 1:
        (folder / "0.safetensors").rename(folder / _WEIGHTS)
        return
    weight_map: dict[str, str] = {}
    for number, sizes in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{number}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(sizes, file)
    total = sum(sum(sizes.values()) for sizes in shards)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    atomic_write_json(folder / f"{_WEIGHTS}.index.json", index)


def _groups(pairs: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[dict[str, Tensor]]:
    """Collect tensors until the next would exceed ``limit`` bytes."""
    group: dict[str, Tensor] = {}
    size = 0
    for name, tensor in pairs:
        if group and size + tensor.nbytes > limit:
            yield group
            group, size = {}, 0
        group[name] = tensor
        size += tensor.nbytes
    if group:
        yield group
