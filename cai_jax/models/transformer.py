"""A decoder-only transformer: tokens to hidden states, hidden states to logits."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from cai_jax.logprobs import softcapped
from cai_jax.mesh import constrain, traced_mesh_of
from cai_jax.models.attention import WIDEST
from cai_jax.models.config import ModelConfig
from cai_jax.models.layers import Angles, Block, Norm, rotary_angles

Params = dict

COMPUTE_DTYPES = ("float32", "bfloat16")

# What the backward pass finds in memory; the rest it computes again.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # products with weights
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Transformer(nn.Module):
    """Embedding, scanned blocks and a last norm.

    Attributes:
      config: the shape.
      dtype: of activations and matrix products; norms, softmax and logits are float32.
      remat: what the backward pass recomputes of a block: a key of REMAT.
      mesh: over which the residual stream is split by rows and tokens.
    """

    config: ModelConfig
    dtype: str = "float32"
    remat: str = "none"
    mesh: jax.sharding.AbstractMesh | None = None

    @nn.compact
    def __call__(
        self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array
    ) -> jax.Array:
        """Runs the stack.

        Args:
          tokens: int32[B, T].
          positions: int32[B, T].
          segment_ids: int32[B, T].

        Returns:
          hidden [B, T, D] after the last norm.
        """
        config = self.config
        x = nn.Embed(config.vocab_size, config.embed, dtype=self.dtype, name="embed")(tokens)
        # The table is split by features. An exchange at a time, or XLA sends everything everywhere.
        for names in (("replicas", None, "embed"), ("batch", None, "tokens"), ("batch", "tokens")):
            x = constrain(x, self.mesh, *names)
        if config.scaled_embeddings:
            x = scaled_embedding(x)
        angles, own = by_layer(config, positions)
        if self.remat == "none":
            block = Block
        else:
            block = nn.remat(Block, prevent_cse=False, policy=REMAT[self.remat])
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0),
            length=config.layers,
        )(config, self.dtype, self.mesh, name="layers")
        x, _ = layers(x, angles, segment_ids, own)
        if self.is_initializing() and not config.tied_embeddings:
            nn.DenseGeneral(config.vocab_size, use_bias=False, name="lm_head")(x[:, :1])
        return Norm(config, self.dtype, name="final_norm")(x)


def scaled_embedding(x: jax.Array) -> jax.Array:
    """[..., D] times the root of D, which is rounded to its dtype first, as Gemma's is."""
    return x * jnp.asarray(x.shape[-1] ** 0.5, x.dtype)


def by_layer(config: ModelConfig, positions: jax.Array) -> tuple[Angles, dict[str, jax.Array]]:
    """What `Block` takes of angles, and of what is a layer's own: int32[L] each, for a scan."""
    (angles, *others), own = rotary_angles(positions, config), {}
    if others:
        angles = tuple(map(jnp.stack, zip(angles, *others, strict=True)))
        own["rope"] = jnp.array(config.rope_of)
    if len(set(config.windows)) > 1:
        own["window"] = jnp.array([w or WIDEST for w in config.windows])
    return angles, own


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Random float32 params of the tree that the weights floor describes."""
    one = jnp.zeros((1, 1), jnp.int32)
    variables = Transformer(config).init(key, one, one, one)
    return variables["params"]


def frozen(params: Params, dtype: str) -> Params:
    """Params that are not trained, kernels and the embedding in the dtype of products.

    These cast them to it anyway, so nothing computed in `dtype` changes; norms stay as they are.
    """

    def cast(path, x):
        return x if path[-2].key.endswith("norm") else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def unembedding(params: Params) -> jax.Array:
    """The output matrix [D, V]: the head's own, or the embedding transposed."""
    if "lm_head" in params:
        return params["lm_head"]["kernel"]
    return params["embed"]["embedding"].T


def logits(params: Params, hidden: jax.Array, softcap: float | None = None) -> jax.Array:
    """[..., D] -> float32[..., V]; through the config's `logits_softcap`, if it has one."""
    kernel = unembedding(params).astype(hidden.dtype)
    return softcapped(jnp.dot(hidden, kernel, preferred_element_type=jnp.float32), softcap)


def hidden_states(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    dtype: str = "float32",
    remat: str = "none",
) -> jax.Array:
    """Hidden states [B, T, D] of whole sequences; no token sees another segment or padding.

    On the mesh of `params` rows are split and, over its sequence axis, tokens; T may be any.

    Args:
      dtype: of activations and matrix products, one of COMPUTE_DTYPES.
      remat: what a backward pass recomputes, a key of REMAT.
    """
    mesh = traced_mesh_of(params)
    module = Transformer(config, dtype, remat, mesh)
    trunk = {k: v for k, v in params.items() if k not in ("lm_head", "scalar_head")}
    length = tokens.shape[1]
    filler = -length % (mesh.shape["sequence"] if mesh else 1)
    inputs = (jnp.pad(x, [(0, 0), (0, filler)]) for x in (tokens, positions, segment_ids))
    return module.apply({"params": trunk}, *inputs)[:, :length]
