"""The weights of a run (initialised, read from a folder, or frozen under adapters) and their engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from distllm.config.resolve import Resolved
from distllm.data.mirror import dataset_directory
from distllm.data.tokenizer.fit import notes_on_fit
from distllm.dist.agree import agree
from distllm.dist.build import build_engine
from distllm.dist.engine import Engine
from distllm.dist.experts import ExpertGroup
from distllm.dist.sequence import SequenceGroup
from distllm.dist.topology import Topology
from distllm.export.base import adapt
from distllm.export.load import load_weights
from distllm.models.decoder import DecoderLM
from distllm.models.heads import head_of
from distllm.models.init import build_model
from distllm.models.moe import part_experts
from distllm.models.recompute import recompute_blocks
from distllm.models.stack import compile_blocks
from distllm.ops.cross_entropy import LossTerms
from distllm.optim.groups import describe_groups
from distllm.optim.optimizers import build_optimizer, groups_of
from distllm.train.privacy import noise_key
from distllm.units import format_count

BASE_FACT = "base"


def build_run_engine(
    resolved: Resolved, topology: Topology, known: Mapping[str, Any] | None, directory: Path
) -> tuple[Engine, list[str], dict[str, object]]:
    """Build the engine around the weights that the run begins with. Collective.

    Args:
        resolved: the run.
        topology: this rank's place.
        known: the facts of the checkpoint from which it continues; None for a new run.
        directory: the run directory, which keeps the secret key of a private run.

    Returns:
        The engine, notes about its weights, and facts for the checkpoints.

    Raises:
        CheckpointError: the weights to start from cannot be read.
    """
    config = resolved.config
    terms = LossTerms(config.task.label_smoothing, config.task.z_loss)
    model = build_model(resolved.shape, config.seed, head=head_of(config.task.name), terms=terms)
    notes, facts = list[str](), dict[str, object]()
    if config.model.lora.rank:
        before = known[BASE_FACT] if known else None
        # Rank 0 reads first, so that all ranks end with the same error if the folder cannot be used.
        base = agree(topology, lambda: adapt(model, config.model, config.seed, before))
        if not topology.is_main:
            adapt(model, config.model, config.seed, base)
        facts[BASE_FACT] = base
        frozen = sum(weight.numel() for weight in model.parameters() if not weight.requires_grad)
        notes.append(f"adapts the weights of {config.model.init_from}: {format_count(frozen)} are frozen")
    elif known is None and config.model.init_from:
        notes += _begin_with(model, resolved)
    if known is None:
        if folder := config.model.init_from:
            notes += notes_on_fit(dataset_directory(config.data), Path(folder))
        notes += describe_groups(groups_of(model, config.optim, resolved.shape.mup)).splitlines()
    if config.engine.compile:
        compile_blocks(model)
    recompute_blocks(model, config.engine.activation_checkpointing)
    if topology.sequence_ranks > 1:
        assert isinstance(model, DecoderLM), "checked with the configuration"
        model.sequence = SequenceGroup(topology, config.cluster.timeout_seconds)
    experts = None
    if topology.expert_ranks > 1:
        experts = part_experts(model, ExpertGroup(topology, config.cluster.timeout_seconds))
    engine = build_engine(
        config.engine.name,
        model,
        lambda module: build_optimizer(module, config.optim, resolved.shape.mup),
        settings=resolved.deepspeed,
        topology=topology,
        timeout_seconds=config.cluster.timeout_seconds,
        experts=experts,
        offload_dir=Path(str(config.engine.offload_dir)) if config.engine.offload == "nvme" else None,
        private=_private(resolved, topology, directory),
    )
    return engine, notes, facts


def _private(resolved: Resolved, topology: Topology, directory: Path) -> dict[str, Any] | None:
    """Return the arguments of a private engine; only rank 0 draws noise and reads the key."""
    private = resolved.config.optim.private
    if private.noise is None:
        return None
    key = noise_key(directory) if topology.is_main else 0
    rows = resolved.sequences_per_step
    return {"noise": private.noise, "clip": private.clip, "rows": rows, "key": key}


def _begin_with(model: nn.Module, resolved: Resolved) -> list[str]:
    """Load the weights of ``model.init_from``; return notes on their origin and on missing weights."""
    folder = resolved.config.model.init_from
    missing = load_weights(model, resolved.shape, Path(str(folder)))
    lacking = f"; it has no {', '.join(missing)}: drawn at random" if missing else ""
    return [f"starts from the weights of {folder}{lacking}"]
