"""The shape of a transformer: what differs from model to model, each a field of its own."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are stretched to a context longer than pretraining's.

    With a factor alone all frequencies are divided by it ("linear", as in Gemma 3); with the other
    three it is as in Llama 3.1 and later.

    Attributes:
      factor: by which frequencies are divided whose waves are longer than context / low.
      low, high: waves shorter than context / high stay as they are; between the two the division
        sets in gradually.
      context: of pretraining, in tokens.
    """

    factor: float
    low: float | None = None
    high: float | None = None
    context: int | None = None

    def __post_init__(self):
        others = self.low, self.high, self.context
        if others == (None, None, None):
            return
        if None in others or not self.low < self.high:
            raise ValueError(
                f"model config: rope_scaling goes from {self.low} to {self.high}; the second must "
                "be larger."
            )


@dataclasses.dataclass(frozen=True)
class Rope:
    """A layer's rotary positions. Attributes: theta, base of the frequencies; their scaling."""

    theta: float
    scaling: RopeScaling | None


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer; without the fields that have a default, Llama's.

    Attributes:
      vocab_size: V, rows of the embedding.
      embed: D, width of the residual stream.
      layers: L.
      heads: H, query heads.
      kv_heads: K, key and value heads; divides H.
      head_dim: C; even, for rotary positions.
      mlp: F, width of the hidden layer.
      rope_theta: base of the rotary frequencies.
      norm_eps: added to the mean square, or to the variance, in norms.
      tied_embeddings: whether the output matrix is the embedding transposed.
      context: the longest sequence the model was trained for, in tokens.
      qkv_bias, o_bias: whether queries, keys and values have a bias, and attention's output.
      mlp_bias: whether the MLP's products have one.
      rope_scaling: of the rotary frequencies, or None.
      experts: E, gated MLPs side by side in a layer; 0 where there is one for all tokens.
      experts_per_token: of them, that each token goes through.
      norm_topk_prob: whether a token's weights of its experts are divided by their sum.
      activation: of the MLP: "silu", "gelu" or "gelu_tanh", its approximation by tanh.
      gated: whether the MLP is down(act(gate(x)) up(x)), or down(act(up(x))).
      norm: "rms" (RMSNorm), or "layer" (LayerNorm, with a bias).
      norm_placement: "pre", before attention and MLP; "post", of what they give, before it is
        added to the residual stream; or "both".
      unit_offset: whether norms multiply by 1 + scale.
      qk_norm: of queries and keys, before rotation: "head", over each head's own dimensions;
        "projection", over all heads'; or None.
      parallel_residual: whether the MLP reads what attention reads, and both are added at once.
      scaled_embeddings: whether embeddings are multiplied by the root of D.
      rotary_dim: how many of a head's dimensions are rotated, the first; None for all.
      query_pre_attn_scalar: scores are divided by its root; None for C's.
      attention_softcap, logits_softcap: c of c tanh(x / c), through which scores of attention and
        the last logits go; None for neither.
      window: how many tokens a token sees in local layers, itself among them.
      local_layers: numbers of those layers, ascending; the others see everything.
      local_rope_theta: base of local layers' rotary frequencies, which are not scaled then; None
        for what the others have.
      nope_layers: numbers of layers without rotary positions, ascending.
      model_type: what files call such a model, where shapes fit several names; the model computes
        the same under any, so configs that differ in it alone are equal.
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
    o_bias: bool = False
    mlp_bias: bool = False
    norm_topk_prob: bool = True
    activation: str = "silu"
    gated: bool = True
    norm: str = "rms"
    norm_placement: str = "pre"
    unit_offset: bool = False
    qk_norm: str | None = None
    parallel_residual: bool = False
    scaled_embeddings: bool = False
    rotary_dim: int | None = None
    query_pre_attn_scalar: float | None = None
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    window: int | None = None
    local_layers: tuple[int, ...] = ()
    local_rope_theta: float | None = None
    nope_layers: tuple[int, ...] = ()
    model_type: str | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self):
        for field in ("vocab_size", "embed", "layers", "heads", "kv_heads", "head_dim", "mlp"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"model config: {field} is {getattr(self, field)}; it must be >= 1."
                )
        for field, known in {
            "activation": ("silu", "gelu", "gelu_tanh"),
            "norm": ("rms", "layer"),
            "norm_placement": ("pre", "post", "both"),
            "qk_norm": (None, "head", "projection"),
        }.items():
            if getattr(self, field) not in known:
                raise ValueError(
                    f"model config: {field} is {getattr(self, field)!r}; it must be one of "
                    f"{', '.join(map(str, known))}."
                )
        for wrong, what in (
            (
                self.heads % self.kv_heads,
                f"heads ({self.heads}) is not a multiple of kv_heads ({self.kv_heads}); "
                "grouped-query attention needs whole groups",
            ),
            (
                self.experts_per_token > self.experts
                or (self.experts and not self.experts_per_token),
                f"experts_per_token is {self.experts_per_token} of {self.experts} experts; it must "
                "be one of them at the least and all at the most",
            ),
            (
                self.experts and (self.activation != "silu" or not self.gated or self.mlp_bias),
                "experts are gated MLPs with silu and without biases; this one has others",
            ),
            (
                self.head_dim % 2,
                f"head_dim is {self.head_dim}; rotary positions need an even one",
            ),
            (
                self.rotary_dim is not None
                and (self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim),
                f"rotary_dim is {self.rotary_dim}; it must be even and at most head_dim "
                f"({self.head_dim})",
            ),
            (
                self.parallel_residual and self.norm_placement != "pre",
                f"norm_placement is {self.norm_placement!r}; with a parallel residual it must be "
                "'pre'",
            ),
            (
                (self.window is None) == bool(self.local_layers)
                or (self.window is not None and self.window < 1),
                f"window is {self.window} with {len(self.local_layers)} local layers; it must be "
                ">= 1 where there are any, and None where there are none",
            ),
        ):
            if wrong:
                raise ValueError(f"model config: {what}.")
        for field in ("local_layers", "nope_layers"):
            numbers = getattr(self, field)
            if list(numbers) != [n for n in range(self.layers) if n in numbers]:
                raise ValueError(
                    f"model config: {field} is {numbers}; they must be of the {self.layers} layers "
                    "and ascend."
                )

    @property
    def windows(self) -> tuple[int | None, ...]:
        """How many tokens a token sees in each of L layers; None for all."""
        local = set(self.local_layers)
        return tuple(self.window if n in local else None for n in range(self.layers))

    @property
    def ropes(self) -> tuple[Rope | None, ...]:
        """The rotary positions that layers have, each once; None in layers without."""
        return tuple(dict.fromkeys(self._rope_by_layer))

    @property
    def rope_of(self) -> tuple[int, ...]:
        """Which of `ropes` each of L layers has."""
        return tuple(map(self.ropes.index, self._rope_by_layer))

    @property
    def _rope_by_layer(self) -> tuple[Rope | None, ...]:
        usual = of_local = Rope(self.rope_theta, self.rope_scaling)
        if self.local_rope_theta is not None:
            of_local = Rope(self.local_rope_theta, None)
        local, without = set(self.local_layers), set(self.nope_layers)
        return tuple(
            None if n in without else of_local if n in local else usual for n in range(self.layers)
        )
