"""How a step is spread over ranks, and how the program that runs it works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Checkpointing = Literal["none", "selective", "full"]
Offload = Literal["none", "optimizer", "disk", "mapped", "all"]


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to run a step.

    Attributes:
        ranks: devices.
        seq_len: tokens of a sample.
        micro_batch: samples in one forward pass of one data-parallel rank.
        accumulation: forward passes of a rank in a step.
        zero_stage: 0 nothing is partitioned, 1 the optimizer, 2 gradients too, 3 weights too.
        checkpointing: activations kept: all; products and attention; or block inputs only.
        sequence: ranks that share a sample by its positions.
        expert: ranks that hold different experts of each mixture.
        tensor: ranks that share every matrix.
        pipeline: stages.
        virtual_stages: chunks of blocks that each stage holds.
        hpz: ranks that hold one more whole copy of stage 3's weights, for backward; 1 means none.
        offload: what lives in host memory. ``disk``: gradients do, the optimizer in files; ``mapped``: the
            optimizer in files of a device whose memory is the host's.
    """

    ranks: int
    seq_len: int
    micro_batch: int
    accumulation: int
    zero_stage: int = 0
    checkpointing: Checkpointing = "none"
    sequence: int = 1
    expert: int = 1
    tensor: int = 1
    pipeline: int = 1
    virtual_stages: int = 1
    hpz: int = 1
    offload: Offload = "none"

    @property
    def data(self) -> int:
        """Ranks that read different samples."""
        return self.ranks // (self.tensor * self.pipeline * self.sequence)

    @property
    def replicas(self) -> int:
        """Ranks among which gradients are summed and state can be partitioned."""
        return self.data * self.sequence

    @property
    def tokens_per_rank(self) -> int:
        """Tokens whose activations one rank holds in one forward pass."""
        return self.micro_batch * self.seq_len // self.sequence

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step over all ranks."""
        return self.micro_batch * self.accumulation * self.data * self.seq_len


@dataclass(frozen=True, slots=True)
class Software:
    """What differs between programs that run the same layout.

    Sizes are bytes of one weight, gradient, activation or logit; traffic is the bytes of it that memory
    reads and writes.

    Attributes:
        weight_bytes: size of a weight in forward and backward.
        grad_bytes: size of a gradient as it is computed.
        accumulated_bytes: size of a second, wider copy of a gradient; 0 if there is none.
        flattened_bytes: size of a partitioned gradient in the optimizer's flat buffer.
        reduced_bytes: size of a gradient that is exchanged.
        optimizer_bytes: size of the moments and of the weight they update.
        update_bytes: traffic of a weight's update.
        element_bytes: size of an activation.
        mlp_saved: arrays as wide as the MLP that backward needs (4 unfused gated, 3 fused, 2 plain).
        mlp_in_place: backward of the gate writes over the gate's inputs (Liger's kernels).
        norm_saved: arrays as wide as the stream that one norm and the products after it need.
        attention_saved: multiples of the width of queries (and of keys and values) that backward needs.
        logits_tokens: tokens whose logits exist at once; 0 means all.
        logits_bytes: size of a logit over all its copies.
        logits_traffic: traffic of a logit in loss and gradient; 0 means three times its copies.
        forward_passes: of a micro-batch in a step, one of them with backward.
        keeps_half: selective checkpointing computes every second product again (torchtitan).
        norm_passes: arrays as wide as the stream that an uncompiled norm moves forward (2: one kernel).
        rotation_passes: arrays as wide as queries and keys that rotating them moves.
        compiled: element-wise operations are fused.
        fused: rotations and gates are one kernel each, without a compiler.
        bias_sums: gradients of biases are summed by passes of their own over what products put out.
        reduces_each_pass: stage 2 reduces after every forward pass, not once a step.
        gathers: times that partitioned weights are gathered for each micro-batch.
        tensor_exposed: share of the exchanges of tensor parallelism that nothing hides.
        stage_messages: exchanges between stages in a micro-batch that nothing hides.
        overlaps_data: gradients are reduced behind backward, and stage 1's weights gathered behind forward,
            as much as fits; otherwise the fitted share of them is hidden.
        sums_whole: stages 1 and 2 sum gradients by all-reduces, of which a rank keeps its part (DeepSpeed).
        sums_late: stage 1 sums gradients by one all-reduce after backward, and gathers tensor by tensor.
        gather_pieces: tensors of a block that such a gather copies one by one for each rank.
        bucket_params: gradients that are exchanged at once below stage 3; 0 means all.
        flattened_sums: gradients that stage 0 flattens into a buffer for one sum after backward (DeepSpeed);
            0 if it sums buckets behind backward.
        adding_bytes: traffic of a gradient that is added to those of earlier micro-batches.
        clipping_bytes: traffic of a gradient between backward and update, partitioned or not.
        weighs_stages: a pipeline's stages are cut by weights, not into equally many blocks.
        live_params: weights that stage 3 keeps gathered; 0 means two blocks.
        gather_copies: further copies of gathered weights, in the buffers that they were copied from.
        bucket_bytes: all buffers of exchanges.
        reference_bytes: size of a weight of the frozen copy that DPO compares with, held whole; 0: none.
        base_bytes: memory of a process before it has a model.
        heap_loss: share of activations that a heap loses between them, and then as much again as what comes
            and goes: arrays of one block, and gradients that wait for further micro-batches; 0: no loss.
    """

    weight_bytes: int = 2
    grad_bytes: int = 2
    accumulated_bytes: int = 0
    flattened_bytes: int = 0
    reduced_bytes: int = 2
    optimizer_bytes: int = 12
    update_bytes: int = 28
    element_bytes: int = 2
    mlp_saved: float = 4
    mlp_in_place: bool = False
    norm_saved: float = 2
    attention_saved: float = 3
    logits_tokens: int = 0
    logits_bytes: int = 10
    logits_traffic: int = 0
    forward_passes: int = 1
    keeps_half: bool = False
    norm_passes: float = 2
    rotation_passes: float = 2
    compiled: bool = False
    fused: bool = False
    bias_sums: bool = False
    reduces_each_pass: bool = True
    gathers: int = 2
    tensor_exposed: float = 1.0
    stage_messages: int = 0
    overlaps_data: bool = False
    sums_whole: bool = False
    sums_late: bool = False
    gather_pieces: int = 0
    bucket_params: int = 0
    flattened_sums: int = 0
    adding_bytes: int = 0
    clipping_bytes: int = 0
    weighs_stages: bool = False
    live_params: int = 0
    gather_copies: int = 0
    bucket_bytes: int = 0
    reference_bytes: int = 0
    base_bytes: float = 0.0
    heap_loss: float = 0.0
