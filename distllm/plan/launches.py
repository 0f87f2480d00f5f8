"""The kernels that a program launches, and what launching them takes its host.

An eager program launches a kernel for each operation, and each costs its host torch's own work and the
driver's. Where kernels are shorter than that, the device waits for its host: small models on fast devices.
"""

from __future__ import annotations

import math

from distllm.plan.layout import Layout, Software
from distllm.plan.machine import Machine
from distllm.plan.work import Work

# torch's rotation of queries, or of keys: four products, two sums and a concatenation.
_ROTATION = 7
# Output projection and loss of one chunk of tokens, both passes (`distllm.ops.cross_entropy`).
_CHUNK = 19


def forward_kernels(work: Work, software: Software) -> float:
    """Return the kernels of one block's forward pass.

    An attention has a norm, two products, the attention itself, an addition and rotations; an MLP has a
    norm, two products for each expert, an activation and an addition. A compiler, and only it, joins norms
    and additions; it, and kernels written for it, join a rotation's parts, and an activation with its gate.
    """
    joined = software.compiled or software.fused
    rotations = 2 * (1 if joined else _ROTATION) if software.rotation_passes else 0
    gate = 2 if work.mlp_matrices == 3 and not joined and not software.mlp_in_place else 1
    stream = 1 if software.compiled else 2
    return work.attentions * (stream + 3 + rotations) + stream + gate + 2 * work.experts


def host_seconds(work: Work, layout: Layout, software: Software, machine: Machine) -> float:
    """Return what launching one micro-batch takes the host of one rank.

    Backward launches twice as many kernels: a product has two gradients, and each parameter's is added.
    """
    forward = forward_kernels(work, software)
    forward += 4 * work.attentions if layout.sequence > 1 else 0  # all-to-alls
    passes = 2 + software.forward_passes + (1 if software.reference_bytes else 0)
    passes += 1 if layout.checkpointing == "full" else 0
    kernels = passes * forward
    if layout.checkpointing == "selective":
        kernels += forward - 3 * work.attentions - 2 * work.experts  # all but products and attention
    tokens = layout.tokens_per_rank
    chunks = math.ceil(tokens / (software.logits_tokens or tokens))
    return machine.launch_seconds * (work.layers / layout.pipeline * kernels + _CHUNK * chunks)
