"""Peak memory of one rank, part by part.

The peak is taken where backward begins: all kept activations are alive together with the logits and
what backward of one block needs; gradients are counted in full, because backward fills them while
activations go.
"""

from __future__ import annotations

from dataclasses import dataclass

from distllm.plan.layout import Layout, Software
from distllm.plan.stages import Stage, stages_of
from distllm.plan.work import Work

# DeepSpeed keeps the weights of this many blocks gathered: the one at work and the one fetched ahead.
_LIVE_BLOCKS = 2
_MASTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank's device by what they are for, and bytes it keeps elsewhere.

    Attributes:
        weights: this rank's part of the weights as forward uses them, and blocks gathered for it.
        gradients: as they are computed and as they are accumulated.
        optimizer: moments and the copies they update.
        reference: a frozen copy of the model, which no stage divides.
        activations: what backward needs, and the block being recomputed.
        logits: of all tokens or of one chunk, with their gradients.
        buffers: buckets of the exchanges.
        fragmentation: lost between allocations.
        base: what a process holds before there is a model.
        host: bytes of host memory that offloading takes.
        disk: bytes of files that offloading takes.
    """

    weights: float
    gradients: float
    optimizer: float
    reference: float
    activations: float
    logits: float
    buffers: float
    fragmentation: float
    base: float
    host: float = 0.0
    disk: float = 0.0

    @property
    def device(self) -> float:
        """All that must fit on the device."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """Return the parts on the device by name."""
        names = ("weights", "gradients", "optimizer", "reference", "activations", "logits", "buffers")
        return {name: getattr(self, name) for name in (*names, "fragmentation", "base")}


def peak_memory(work: Work, layout: Layout, software: Software) -> Memory:
    """Return the peak of the rank that needs most."""
    return max(stage_peaks(work, layout, software), key=lambda memory: memory.device)


def stage_peaks(work: Work, layout: Layout, software: Software) -> list[Memory]:
    """Return the peaks of the ranks of each of a pipeline's stages."""
    stages = enumerate(stages_of(work, layout, software))
    return [_stage_memory(work, layout, software, place, stage) for place, stage in stages]


def saved_per_token(work: Work, software: Software, checkpointing: str) -> float:
    """Return the elements that one block keeps for backward, for one token.

    Without checkpointing: the inputs of both norms and of both groups of products, what attention
    needs, and what the MLP needs. Selective keeps what products and attention put out, and the
    block's input; full keeps only the block's input (Chen et al. 2016, Korthikanti et al. 2022).
    """
    query, key_value = work.heads * work.head_dim, 2 * work.kv_heads * work.head_dim
    if checkpointing == "full":
        return work.hidden
    if checkpointing == "selective":
        products = work.attentions * (2 * query + key_value + work.hidden) + work.hidden
        kept = work.hidden + products + (work.mlp_matrices - 1) * work.active_experts * work.intermediate
        # of seven products those of keys, output and the MLP's way up are computed again
        again = key_value / 2 + work.hidden + work.intermediate
        return kept - again if software.keeps_half else kept
    # the output of attention is kept once more for the projection that reads it
    attention = software.attention_saved / 3 * (3 * query + 1.5 * key_value)
    stream = (work.attentions + 1) * software.norm_saved * work.hidden
    return stream + work.attentions * attention + software.mlp_saved * work.active_experts * work.intermediate


def _stage_memory(work: Work, layout: Layout, software: Software, place: int, stage: Stage) -> Memory:
    held = _state(work, layout, software, stage)
    activations = _activations(work, layout, software, place, stage)
    return Memory(
        weights=held.weights,
        gradients=held.gradients,
        optimizer=held.optimizer,
        reference=work.params * software.reference_bytes,
        activations=activations,
        logits=_logits(work, layout, software) if stage.last else 0.0,
        buffers=_buffers(work, layout, software, stage),
        fragmentation=_fragmentation(work, layout, software, held.gradients, activations),
        base=software.base_bytes,
        host=held.host,
        disk=held.disk,
    )


def _buffers(work: Work, layout: Layout, software: Software, stage: Stage) -> float:
    learning = _stage_params(work, layout, stage) * work.trainable_share
    return software.bucket_bytes + min(software.flattened_sums, learning) * software.reduced_bytes


def _fragmentation(
    work: Work, layout: Layout, software: Software, gradients: float, activations: float
) -> float:
    if not software.heap_loss:
        return 0.0
    tokens = layout.tokens_per_rank / layout.tensor
    comes_and_goes = saved_per_token(work, software, "none") * tokens * software.element_bytes
    if layout.accumulation > 1:
        comes_and_goes += gradients
    return software.heap_loss * activations + comes_and_goes


@dataclass(frozen=True, slots=True)
class _State:
    """Bytes of one rank that do not depend on the batch."""

    weights: float
    gradients: float
    optimizer: float
    host: float
    disk: float


def _state(work: Work, layout: Layout, software: Software, stage: Stage) -> _State:
    elsewhere = work.expert_params if layout.expert > 1 else 0.0
    experts = elsewhere * stage.blocks / layout.tensor
    params = _stage_params(work, layout, stage) - experts
    block = (work.block_params - elsewhere) / layout.tensor
    shards = layout.replicas
    learning = params * work.trainable_share
    whole = learning / shards
    weights = params * software.weight_bytes
    gradients = learning * (software.grad_bytes + software.accumulated_bytes)
    optimizer = learning * software.optimizer_bytes
    if layout.zero_stage >= 1:
        optimizer = whole * software.optimizer_bytes
        gradients += whole * software.flattened_bytes
    if layout.zero_stage >= 2:
        gradients = whole * ((software.accumulated_bytes or software.grad_bytes) + software.flattened_bytes)
    if layout.zero_stage == 3:
        held = params / shards + (params / layout.hpz if layout.hpz > 1 else 0)
        live = min(software.live_params or _LIVE_BLOCKS * block, params)
        gathered = live * software.weight_bytes * (1 + software.gather_copies)
        weights = held * software.weight_bytes + gathered
        gradients += block * work.trainable_share * software.grad_bytes
    host = disk = 0.0
    if layout.offload in ("disk", "mapped"):
        disk, optimizer = optimizer, 0.0
    if layout.offload not in ("none", "mapped"):
        host, optimizer = optimizer, 0.0
        # gradients leave for the host bucket by bucket, and wait for the update there
        host, gradients = host + gradients, block * work.trainable_share * software.grad_bytes
    if layout.offload == "all":
        host += weights
        weights = min(_LIVE_BLOCKS * block, params) * software.weight_bytes
    own = experts / layout.expert
    # a rank's own experts are whole, their masters, moments and summed gradients divided from stage 1 on
    share = own / (shards / layout.expert if layout.zero_stage else 1)
    weights += own * software.weight_bytes
    gradients += own * software.grad_bytes + share * _MASTER_BYTES
    optimizer += share * max(software.optimizer_bytes, 3 * _MASTER_BYTES)
    return _State(weights, gradients, optimizer, host, disk)


def _stage_params(work: Work, layout: Layout, stage: Stage) -> float:
    """Return the parameters of one stage's rank; the first and the last stage hold an embedding each."""
    blocks = stage.blocks * work.block_params
    ends = work.vocab * work.hidden
    if layout.pipeline == 1:
        embeddings: float = work.embedding_params + work.hidden + work.extra_params
    else:
        embeddings = ends * (stage.first + stage.last)
    return (blocks + embeddings) / layout.tensor


def _activations(work: Work, layout: Layout, software: Software, place: int, stage: Stage) -> float:
    tokens = layout.tokens_per_rank / layout.tensor
    # 1F1B: a stage has begun as many micro-batches as there are stages from it to the end
    alive: float = min(layout.pipeline - place, layout.accumulation) if layout.pipeline > 1 else 1
    if layout.virtual_stages > 1:
        alive *= 1 + (layout.pipeline - 1) / (layout.pipeline * layout.virtual_stages)
    kept = saved_per_token(work, software, layout.checkpointing) * stage.blocks * alive
    if layout.checkpointing != "none":
        kept += saved_per_token(work, software, "none")  # the block that is computed again
    # gradients of activations: most are alive inside an MLP
    arrays = 1 if software.mlp_in_place else work.mlp_matrices
    kept += work.hidden + arrays * work.active_experts * work.intermediate
    return kept * tokens * software.element_bytes


def _logits(work: Work, layout: Layout, software: Software) -> float:
    tokens = layout.tokens_per_rank
    chunk = min(tokens, software.logits_tokens or tokens)
    logits = chunk * work.vocab / layout.tensor * software.logits_bytes
    if not software.logits_tokens:
        return logits
    # gradients of the hidden states and of the projection are ready with the loss
    return logits + tokens * work.hidden * software.element_bytes + work.vocab * work.hidden * 4
