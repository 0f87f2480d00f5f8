"""What one model asks of a machine, reduced to the numbers the planner needs.

The arithmetic of ``plan`` reads a `Work`, never a configuration, so that published models with other
blocks than ours (a plain MLP, learned positions) can be planned too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from distllm.config.shape import ModelShape
from distllm.plan.flops import matmul_params


@dataclass(frozen=True, slots=True)
class Work:
    """A stack of equal blocks between an embedding and an output projection.

    Attributes:
        hidden: width of the residual stream.
        layers: blocks.
        heads: query heads.
        kv_heads: key/value heads.
        head_dim: width of a head.
        intermediate: width of the MLP.
        mlp_matrices: 3 for a gated MLP, 2 for a plain one.
        vocab: rows of the embedding.
        tied: the embedding is also the output projection.
        experts: MLPs of a block.
        active_experts: MLPs of a block that a token passes through.
        causal_attentions: attentions of an average block in which positions see what precedes them.
        full_attentions: attentions of an average block in which positions see everything.
        extra_params: parameters beyond those of blocks and embeddings.
        extra_multiplied: weights that multiply a token beyond those of blocks and output projection.
        trainable_share: parameters that learn, as a share of all; the others have neither gradients nor
            moments.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    mlp_matrices: int
    vocab: int
    tied: bool
    experts: int = 1
    active_experts: int = 1
    causal_attentions: float = 1.0
    full_attentions: float = 0.0
    extra_params: int = 0
    extra_multiplied: int = 0
    trainable_share: float = 1.0

    @property
    def attentions(self) -> float:
        """Attentions of one block, on average."""
        return self.causal_attentions + self.full_attentions

    @property
    def attention_params(self) -> int:
        """Weights of the four projections of one attention."""
        return 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim

    @property
    def mlp_params(self) -> int:
        """Weights of one MLP, of one expert where there are several."""
        return self.mlp_matrices * self.hidden * self.intermediate

    @property
    def expert_params(self) -> float:
        """Parameters of the experts of one block; 0 where there is one MLP for all tokens."""
        return self.experts * self.mlp_params if self.experts > 1 else 0.0

    @property
    def block_params(self) -> float:
        """Parameters of one block, on average: projections, MLPs, router and scales of norms."""
        router = self.hidden * self.experts if self.experts > 1 else 0
        norms = (self.attentions + 1) * self.hidden
        return self.attentions * self.attention_params + self.experts * self.mlp_params + router + norms

    @property
    def embedding_params(self) -> int:
        """Parameters of the embedding and, if it is another matrix, of the output projection."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def params(self) -> int:
        """All parameters, a shared one counted once."""
        blocks = round(self.layers * self.block_params)
        return blocks + self.embedding_params + self.hidden + self.extra_params

    @property
    def multiplied_params(self) -> int:
        """Weights that multiply a token: the blocks' matrices it passes, and the output projection."""
        block = self.attentions * self.attention_params + self.active_experts * self.mlp_params
        return round(self.layers * block) + self.vocab * self.hidden + self.extra_multiplied


def work_of(shape: ModelShape, trainable_params: int | None = None) -> Work:
    """Return the work of a settled model; parameters outside of equal blocks become ``extra``.

    An encoder-decoder is taken for one stack, with source and target equally long.

    Args:
        shape: the model.
        trainable_params: parameters that learn, if not all do.
    """
    cross = shape.family == "encoder_decoder"
    encoders = {"decoder": 0, "encoder": shape.num_layers, "encoder_decoder": shape.num_encoder_layers}
    bidirectional = encoders[shape.family]
    layers = shape.num_layers + (bidirectional if cross else 0)
    causal = layers - bidirectional
    work = Work(
        hidden=shape.hidden_size,
        layers=layers,
        heads=shape.num_heads,
        kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        intermediate=shape.intermediate_size,
        mlp_matrices=3 if shape.gated else 2,
        vocab=shape.vocab_size,
        tied=shape.tie_embeddings,
        experts=shape.num_experts or 1,
        active_experts=shape.experts_per_token if shape.num_experts else 1,
        causal_attentions=causal / layers,
        full_attentions=(bidirectional + (causal if cross else 0)) / layers,
    )
    return replace(
        work,
        extra_params=shape.num_params - work.params,
        extra_multiplied=matmul_params(shape) - work.multiplied_params,
        trainable_share=min(1.0, (trainable_params or shape.num_params) / shape.num_params),
    )
