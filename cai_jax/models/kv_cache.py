"""Keys and values of many slots, written in place."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from cai_jax.models.attention import Past
from cai_jax.models.config import ModelConfig


@flax.struct.dataclass
class KVCache:
    """Attributes: k, v [L, S, K, P, C]; position after kv head, so that a head reads one block."""

    k: jax.Array
    v: jax.Array


def empty(config: ModelConfig, slots: int, length: int, dtype: jnp.dtype) -> KVCache:
    """A cache of zeros for `slots` sequences of up to `length` tokens."""
    shape = (config.layers, slots, config.kv_heads, length, config.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def past(cache: KVCache, lengths: jax.Array) -> Past:
    """What the model attends to: each slot's first `lengths` int32[S] positions."""
    mask = jnp.arange(cache.k.shape[3]) < lengths[:, None]
    return Past(cache.k, cache.v, mask)


def shared_past(cache: KVCache, length: jax.Array, rows: int) -> Past:
    """A one-slot cache that all of `rows` attend to, up to `length` int32[]."""
    mask = jnp.broadcast_to(jnp.arange(cache.k.shape[3]) < length, (rows, cache.k.shape[3]))
    return Past(cache.k[:, 0], cache.v[:, 0], mask)


def write(
    cache: KVCache,
    new: tuple[jax.Array, jax.Array],
    slots: jax.Array,
    starts: jax.Array,
    counts: jax.Array,
) -> KVCache:
    """Writes new keys and values.

    Args:
      cache: [L, S, K, P, C].
      new: (k, v), each [L, R, T, K, C].
      slots: int32[R]; a row whose slot is S or more is dropped.
      starts: int32[R], where each row's tokens go.
      counts: int32[R]; tokens past a row's count are dropped.
    """
    capacity = cache.k.shape[3]
    offsets = jnp.arange(new[0].shape[2])
    places = jnp.where(offsets < counts[:, None], starts[:, None] + offsets, capacity)

    def put(old: jax.Array, fresh: jax.Array) -> jax.Array:
        # Indices on both sides of a slice put their axes first: [R, T, L, K, C].
        fresh = fresh.astype(old.dtype).transpose(1, 2, 0, 3, 4)
        return old.at[:, slots[:, None], :, places].set(fresh, mode="drop")

    return KVCache(put(cache.k, new[0]), put(cache.v, new[1]))
