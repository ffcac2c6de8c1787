"""The shape of a transformer."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 and later stretch rotary positions to a context longer than pretraining's.

    Attributes:
      factor: by which frequencies are divided whose waves are longer than context / low.
      low, high: waves shorter than context / high stay as they are; between the two the division
        sets in gradually.
      context: of pretraining, in tokens.
    """

    factor: float
    low: float
    high: float
    context: int

    def __post_init__(self):
        if not self.low < self.high:
            raise ValueError(
                f"model config: rope_scaling goes from {self.low} to {self.high}; the second must "
                "be larger."
            )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer of the Llama, the Qwen2 or the Mixtral architecture.

    Attributes:
      vocab_size: V, rows of the embedding.
      embed: D, width of the residual stream.
      layers: L.
      heads: H, query heads.
      kv_heads: K, key and value heads; divides H.
      head_dim: C; even, for rotary positions.
      mlp: F, width of the gated hidden layer.
      rope_theta: base of the rotary frequencies.
      norm_eps: added to the mean square in RMSNorm.
      tied_embeddings: whether the output matrix is the embedding transposed.
      context: the longest sequence the model was trained for, in tokens.
      qkv_bias: whether queries, keys and values have a bias, as Qwen2's do.
      rope_scaling: of the rotary frequencies, or None.
      experts: E, gated MLPs side by side in a layer; 0 where there is one for all tokens.
      experts_per_token: of them, that each token goes through.
    """

    vocab_size: int
    embed: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    rope_theta: float
    norm_eps: float
    tied_embeddings: bool
    context: int
    qkv_bias: bool = False
    rope_scaling: RopeScaling | None = None
    experts: int = 0
    experts_per_token: int = 0

    def __post_init__(self):
        for field in ("vocab_size", "embed", "layers", "heads", "kv_heads", "head_dim", "mlp"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"model config: {field} is {getattr(self, field)}; it must be >= 1."
                )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model config: heads ({self.heads}) is not a multiple of kv_heads "
                f"({self.kv_heads}); grouped-query attention needs whole groups."
            )
        if self.experts_per_token > self.experts or (self.experts and not self.experts_per_token):
            raise ValueError(
                f"model config: experts_per_token is {self.experts_per_token} of {self.experts} "
                "experts; it must be one of them at the least and all at the most."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"model config: head_dim is {self.head_dim}; rotary positions need an even one."
            )
