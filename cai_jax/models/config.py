"""The shape of a transformer."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer of the Llama architecture.

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
        if self.head_dim % 2:
            raise ValueError(
                f"model config: head_dim is {self.head_dim}; rotary positions need an even one."
            )
