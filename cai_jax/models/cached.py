"""The transformer over new tokens that also attend to what stands in a cache.

Tokens of many rows come in one flat list, so that products with weights, which are most of the
work, meet no padding; only attention sees rows. Weights come layer by layer: a scan over a stack
copies each layer's out of it before multiplying by them, at every token (a third of a decode step
on CPU).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp

from cai_jax.models.attention import Part
from cai_jax.models.config import ModelConfig
from cai_jax.models.kv_cache import KVCache
from cai_jax.models.layers import Block, RMSNorm, rotary_angles
from cai_jax.models.transformer import Params

Kept = TypeVar("Kept")


@flax.struct.dataclass
class Prefix:
    """What all rows read first. Attributes: cache of one slot; length int32[]."""

    cache: KVCache
    length: jax.Array


@flax.struct.dataclass
class Layout:
    """Where N tokens in a list stand in R rows of W places.

    Attributes:
      rows: int32[N]; R marks padding.
      offsets: int32[N], below W.
      index: int32[R, W], which of the list stands at a place; N for none.
    """

    rows: jax.Array
    offsets: jax.Array
    index: jax.Array

    @classmethod
    def of(cls, rows: jax.Array, offsets: jax.Array, count: int, width: int) -> Layout:
        n = rows.shape[0]
        empty = jnp.full((count, width), n, jnp.int32)
        return cls(rows, offsets, empty.at[rows, offsets].set(jnp.arange(n), mode="drop"))

    def to_rows(self, x: jax.Array) -> jax.Array:
        """[N, K, ...] -> [K, R, W, ...]; zeros where nothing stands."""
        n, kv_heads, *rest = x.shape
        head = jnp.arange(kv_heads)[:, None, None]
        flat = x.reshape(n * kv_heads, *rest)
        return flat.at[self.index * kv_heads + head].get(mode="fill", fill_value=0)

    def to_list(self, x: jax.Array) -> jax.Array:
        """[K, R, W, ...] -> [N, K, ...]."""
        kv_heads, r, w, *rest = x.shape
        place = self.rows * w + self.offsets
        flat = x.reshape(kv_heads * r * w, *rest)
        head = jnp.arange(kv_heads) * (r * w)
        return flat.at[place[:, None] + head].get(mode="clip")


@jax.jit
def unstacked(params: Params) -> Params:
    """The layout that decoding reads: under "layers" a tuple of L trees instead of a stack."""
    stack = params["layers"]
    count = jax.tree.leaves(stack)[0].shape[0]
    layers = tuple(jax.tree.map(lambda x, n=n: x[n], stack) for n in range(count))
    return {**params, "layers": layers}


def forward(
    config: ModelConfig,
    dtype: jnp.dtype,
    params: Params,
    ids: jax.Array,
    positions: jax.Array,
    attend: Callable[[int, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Kept]],
) -> tuple[jax.Array, list[Kept]]:
    """Runs the stack.

    Args:
      params: in the layout of `unstacked`.
      ids: int32[N].
      positions: int32[N], each token's place in its text.
      attend: called with a layer's number, q [N, K, G, C] and k and v [N, K, C]; returns what the
        queries got [N, K, G, C] and something to keep.

    Returns:
      hidden [N, D] after the last norm, and what each layer's `attend` wants kept.
    """
    x = jnp.take(params["embed"]["embedding"], ids, axis=0).astype(dtype)[None]
    cos, sin = rotary_angles(positions[None], config.head_dim, config.rope_theta)
    groups, kept = (len(ids), config.kv_heads, -1, config.head_dim), []
    for number, layer in enumerate(params["layers"]):
        q, k, v = _project(config, dtype, layer, x, cos, sin)
        attended, keep = attend(number, q.reshape(groups), k[0], v[0])
        kept.append(keep)
        x = _combine(config, dtype, layer, x, attended.reshape(q.shape))
    norm = RMSNorm(config.norm_eps, dtype)
    return norm.apply({"params": params["final_norm"]}, x)[0], kept


# Jitted, so that tracing goes through one layer and not through all of them.
@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _project(config, dtype, layer, x, cos, sin):
    return Block(config, dtype).apply({"params": layer}, x, cos, sin, method="project")


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _combine(config, dtype, layer, x, attended):
    return Block(config, dtype).apply({"params": layer}, x, attended, method="combine")


def shared_part(prefix: Prefix | None, layer: int) -> tuple[Part, ...]:
    """What all rows read first, as parts to attend to."""
    if prefix is None:
        return ()
    seen = jnp.arange(prefix.cache.length) < prefix.length
    return (Part(prefix.cache.k[layer][:, 0], prefix.cache.v[layer][:, 0], seen[None, None]),)


def cached_part(own: KVCache, layer: int, mask: jax.Array) -> tuple[Part, ...]:
    """What rows have read, as parts to attend to; none where nothing was."""
    return (Part(own.k[layer], own.v[layer], mask),) if own.length else ()


def new_part(k: jax.Array, v: jax.Array, mask: jax.Array) -> Part:
    """New keys and values [K, R, W, C] as a part to attend to."""
    return Part(k.swapaxes(2, 3), v, mask)
