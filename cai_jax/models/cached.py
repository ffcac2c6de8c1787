"""The transformer over new tokens that also attend to what stands in a cache.

Tokens of many rows come in one flat list, so that products with weights, which are most of the
work, meet no padding; only attention sees rows. Weights come in the layout of `unstacked`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from qwix import QArray

from cai_jax.logprobs import softcapped
from cai_jax.mesh import traced_mesh_of
from cai_jax.models import kv_cache, slot_attention
from cai_jax.models.attention import Part, cached_attention
from cai_jax.models.config import ModelConfig
from cai_jax.models.experts import mixture
from cai_jax.models.int8 import whole
from cai_jax.models.kv_cache import KVCache
from cai_jax.models.layers import ACTIVATIONS, Angles, query_scale, rotary_angles
from cai_jax.models.transformer import Params, scaled_embedding

Kept = TypeVar("Kept")


@flax.struct.dataclass
class Prefix:
    """What all rows read first. Attributes: cache of one slot; length int32[]."""

    cache: KVCache
    length: jax.Array

    def layer(self, number: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A layer's keys [K, 1, C, P] and values [K, 1, P, C], and the length."""
        return self.cache.k[number], self.cache.v[number], self.length


def forward(
    config: ModelConfig,
    dtype: jnp.dtype,
    params: Params,
    ids: jax.Array,
    positions: jax.Array,
    attend: Callable[[int, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Kept]],
) -> tuple[jax.Array, list[Kept]]:
    """Runs the stack: the same function as `transformer.Transformer`, over features by tokens.

    Args:
      params: in the layout of `unstacked`.
      ids: int32[N].
      positions: int32[N], each token's place in its text.
      attend: called with a layer's number, q [N, K, G, C] and k and v [N, K, C]; returns what the
        queries got [N, K, G, C] and something to keep.

    Returns:
      hidden [D, N] after the last norm, and what each layer's `attend` wants kept.
    """
    x, angles = embedded(config, dtype, params["embed"], ids, positions)
    kept = []
    for number, layer in enumerate(params["layers"]):
        attending = functools.partial(attend, number)
        x, keep = block(config, dtype, layer, x, angles[config.rope_of[number]], attending)
        kept.append(keep)
    return _norm(config, dtype, params, "final_norm", x), kept


def embedded(
    config: ModelConfig, dtype: jnp.dtype, embed: jax.Array, ids: jax.Array, positions: jax.Array
) -> tuple[jax.Array, tuple[Angles, ...]]:
    """The residual stream [D, N] before the first layer, and cosines and sines [R/2, N] of each of
    the config's `ropes`."""
    angles = rotary_angles(positions, config)
    x = jnp.take(embed, ids, axis=0).astype(dtype)
    x = scaled_embedding(x) if config.scaled_embeddings else x
    return x.T, tuple((cos[:, 0].T, sin[:, 0].T) for cos, sin in angles)


def block(
    config: ModelConfig,
    dtype: jnp.dtype,
    layer: Params,
    x: jax.Array,
    angles: Angles,
    attend: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Kept]],
) -> tuple[jax.Array, Kept]:
    """One layer of `forward`: the residual stream after it, and what `attend` wants kept."""
    attended, keep = attend(*project(config, dtype, layer, x, *angles))
    return _combine(config, dtype, layer, x, attended), keep


def final_logits(config: ModelConfig, dtype: jnp.dtype, params: Params, x: jax.Array) -> jax.Array:
    """float32[N, V] from the residual stream [D, N] after the last layer."""
    return logits(config, params, _norm(config, dtype, params, "final_norm", x))


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """[D, N] -> float32[N, V]."""
    head = params["head"].astype(hidden.dtype)
    # Transposed first, and kept so: XLA's product for CPU with both sides transposed takes twice
    # as long, and of one whose result is transposed it has none of bfloat16 to float32.
    hidden = jax.lax.optimization_barrier(hidden.T)
    scores = jnp.einsum("nd,vd->nv", hidden, head, preferred_element_type=jnp.float32)
    return softcapped(scores, config.logits_softcap)


# Jitted, so that tracing goes through one layer and not through all of them.
@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def project(config, dtype, layer, x, cos, sin):
    """The residual stream [D, N] -> q [N, K, G, C], k and v [N, K, C]."""
    h = x if config.norm_placement == "post" else _norm(config, dtype, layer, "attention_norm", x)
    q, k, v = (_dense(layer, name, h).reshape(-1, config.head_dim, len(h.T)) for name in "qkv")
    if config.qk_norm:
        q = _qk_norm(config, dtype, layer, "q_norm", q)
        k = _qk_norm(config, dtype, layer, "k_norm", k)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    if query_scale(config) != 1:
        q = q * query_scale(config)
    q = q.reshape(config.kv_heads, -1, *q.shape[1:])
    return jnp.moveaxis(q, -1, 0), jnp.moveaxis(k, -1, 0), jnp.moveaxis(v, -1, 0)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _combine(config, dtype, layer, x, attended):
    """The residual stream after attention [N, K, G, C] and the MLP, [D, N]."""
    norm = functools.partial(_norm, config, dtype, layer)
    out = _dense(layer, "o", attended.reshape(len(attended), -1).T)
    before, x = x, x + (out if config.norm_placement == "pre" else norm("attention_post_norm", out))
    h = before if config.parallel_residual else x
    h = h if config.norm_placement == "post" else norm("mlp_norm", h)
    out = _mlp(config, layer, h)
    return x + (out if config.norm_placement == "pre" else norm("mlp_post_norm", out))


def _mlp(config: ModelConfig, layer: Params, h: jax.Array) -> jax.Array:
    """[D, N] -> [D, N]."""
    if config.experts:
        kernels = (whole(layer[f"experts_{name}"]) for name in ("gate", "up", "down"))
        return mixture(
            h.T, layer["router"], *kernels,
            per_token=config.experts_per_token, normalised=config.norm_topk_prob,
            mesh=traced_mesh_of(layer), names=("slots",),
        ).T  # fmt: skip
    act = ACTIVATIONS[config.activation]
    if config.gated:
        hidden = act(_dense(layer, "gate", h)) * _dense(layer, "up", h)
    else:
        hidden = act(_dense(layer, "up", h))
    return _dense(layer, "down", hidden)


def _dense(layer: Params, name: str, x: jax.Array) -> jax.Array:
    """Weights of any axes by x [D, N], as [outputs, N], and their bias if they have one."""
    out = _product(layer[name], x)
    bias = layer.get(f"{name}_bias")
    return out if bias is None else out + bias.astype(x.dtype).reshape(-1, 1)


def _product(weights: jax.Array | QArray, x: jax.Array) -> jax.Array:
    """Weights of any axes by x [D, N], as [outputs, N]; D is what the weights' last axes hold."""
    if isinstance(weights, QArray):
        scale = weights.scale.reshape(-1, 1).astype(x.dtype)
        return _product(weights.qvalue, x) * scale
    return weights.astype(x.dtype).reshape(-1, len(x)) @ x


def _norm(config, dtype, weights: Params, name: str, x: jax.Array) -> jax.Array:
    """`layers.Norm` over the first axis of [D, N]."""
    scale, bias = weights[name].astype(jnp.float32), weights.get(f"{name}_bias")
    x = x.astype(jnp.float32)
    if config.norm == "layer":
        x = x - jnp.mean(x, 0)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), 0) + config.norm_eps)
    x = x * (1 + scale if config.unit_offset else scale)[:, None]
    return (x if bias is None else x + bias.astype(jnp.float32)[:, None]).astype(dtype)


def _qk_norm(config, dtype, layer: Params, name: str, x: jax.Array) -> jax.Array:
    """[heads, C, N], by head or all heads together."""
    if config.qk_norm == "head":
        return jax.vmap(functools.partial(_norm, config, dtype, layer, name))(x)
    scale = {name: layer[name].ravel()}
    return _norm(config, dtype, scale, name, x.reshape(-1, x.shape[-1])).reshape(x.shape)


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """`layers.rotate` of [heads, C, N] by [R/2, N]."""
    size = 2 * len(cos)
    if size < x.shape[1]:
        return jnp.concatenate([_rotate(x[:, :size], cos, sin), x[:, size:]], 1)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], 1)
    return rotated.astype(x.dtype)


def shared_part(
    shared: tuple[jax.Array, jax.Array, jax.Array] | None, begins: jax.Array | None = None
) -> tuple[Part, ...]:
    """What all rows read first, of `Prefix.layer`, as parts to attend to; `begins` int32[R] as in
    `attend_and_write`'s mask of a row's own."""
    if shared is None:
        return ()
    k, v, length = shared
    number = jnp.arange(v.shape[2])
    mask = (number < length)[None, None]
    if begins is not None:
        mask &= (number >= begins[:, None] + length)[:, None]
    return (Part(k[:, 0], v[:, 0], mask),)


def attend_and_write(
    own: KVCache,
    prefix: Prefix | None,
    layer: int,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    at: jax.Array,
    places: jax.Array,
    mesh: jax.sharding.Mesh | None,
    window: int | None = None,
    softcap: float | None = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """One new token in each of R rows attends to what its row holds and to itself; it is kept.

    Args:
      q: [R, K, G, C].
      k, v: [R, K, C].
      at: int32[R], how much each row holds.
      places: int32[R], `at`, or out of range in a row that keeps nothing.
      window, softcap: as in `attention.self_attention`.

    Returns:
      [R, K, G, C], and the layer's keys and values with the new ones.
    """
    shared, held = prefix and prefix.layer(layer), (own.k[layer], own.v[layer])
    # The first place of its own that each token sees; below 0, of the end of the prefix.
    begins = None if window is None else at - window + 1
    if slot_attention.by_kernel(mesh):
        held = slot_attention.write(held, (k, v), None, places, mesh)
        seen = jnp.where(places == at, at + 1, 0)  # nothing in a row that keeps nothing
        out = slot_attention.decode_attention(q, held, shared, seen, mesh, begins, softcap)
        return out, held
    held = kv_cache.write(held, (k, v), jnp.arange(len(at)), places)
    number = jnp.arange(own.length)
    mask = number <= at[:, None]
    mask = mask if begins is None else mask & (number >= begins[:, None])
    own_part, q = Part(*held, mask[:, None]), q.swapaxes(0, 1)[:, :, None]
    out = cached_attention(q, (*shared_part(shared, begins), own_part), softcap)
    return out[:, :, 0].swapaxes(0, 1), held
