"""Keys and values of many slots, layer by layer, written in place."""

from __future__ import annotations

from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp

from cai_jax.mesh import constrain, fitted
from cai_jax.models.config import ModelConfig

Layer = tuple[jax.Array, jax.Array]  # keys and values
Cached = TypeVar("Cached", "KVCache", Layer)

AXES = ("kv_heads", "slots")  # names of the first axes of keys and of values


@flax.struct.dataclass
class KVCache:
    """What L layers have computed for S slots.

    An array a layer, so that a layer reads its own where it stands. Keys and values are laid out
    unlike: so both products of attention sum over the cache's axis next to the last, which on CPU
    is about twice as fast as the last.

    Attributes:
      k: L arrays [K, S, C, P].
      v: L arrays [K, S, P, C].
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]

    @classmethod
    def of_layers(cls, layers: list[Layer]) -> KVCache:
        """From each layer's (k, v)."""
        return cls(*map(tuple, zip(*layers, strict=True)))

    @property
    def layers(self) -> list[Layer]:
        """Each layer's (k, v)."""
        return list(zip(self.k, self.v, strict=True))

    @property
    def slots(self) -> int:
        return self.v[0].shape[1]

    @property
    def length(self) -> int:
        return self.v[0].shape[2]


def empty(
    config: ModelConfig,
    slots: int,
    length: int,
    dtype: jnp.dtype,
    mesh: jax.sharding.Mesh | None = None,
) -> KVCache:
    """A cache of zeros for `slots` sequences of up to `length` tokens, split over the mesh."""
    k = (config.kv_heads, slots, config.head_dim, length)
    v = (config.kv_heads, slots, length, config.head_dim)
    zeros = lambda shape: jnp.zeros(shape, dtype, device=fitted(mesh, shape, *AXES))  # noqa: E731
    layers = range(config.layers)
    return KVCache(tuple(zeros(k) for _ in layers), tuple(zeros(v) for _ in layers))


def constrained(cache: Cached, mesh: jax.sharding.Mesh | None) -> Cached:
    """In jitted code, a cache or a layer's keys and values split over the mesh as `empty` does."""
    return jax.tree.map(lambda x: constrain(x, mesh, *AXES), cache)


def token_bytes(config: ModelConfig, dtype: jnp.dtype) -> int:
    """Bytes that one token takes in all layers."""
    return 2 * config.layers * config.kv_heads * config.head_dim * jnp.dtype(dtype).itemsize


def pick(cache: KVCache, slots: jax.Array, limit: int) -> KVCache:
    """The first `limit` positions of slots int32[R] in any order, repeated ones included."""
    return KVCache.of_layers([pick_layer(layer, slots, limit) for layer in cache.layers])


def pick_layer(layer: Layer, slots: jax.Array, limit: int) -> Layer:
    """`pick` of one layer."""
    k, v = layer
    return k.at[:, slots, :, :limit].get(mode="clip"), v.at[:, slots, :limit].get(mode="clip")


def front(cache: KVCache, limit: int) -> KVCache:
    """The first `limit` positions of all slots."""
    if limit == cache.length:
        return cache
    return KVCache(tuple(k[..., :limit] for k in cache.k), tuple(v[:, :, :limit] for v in cache.v))


def put_front(cache: KVCache, rows: KVCache) -> KVCache:
    """Writes the beginnings of all slots back. A scatter would gather all of them on a mesh."""
    if rows.length == cache.length:
        return rows
    return jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice(old, new, (0,) * 4), cache, rows
    )


def put(cache: KVCache, slots: jax.Array, rows: KVCache) -> KVCache:
    """Writes rows back to the beginnings of slots int32[R]; a slot of S or more is dropped."""
    both = zip(cache.layers, rows.layers, strict=True)
    return KVCache.of_layers([put_layer(old, slots, new) for old, new in both])


def put_layer(layer: Layer, slots: jax.Array, rows: Layer) -> Layer:
    """`put` in one layer."""
    (k, v), (new_k, new_v) = layer, rows
    limit = new_v.shape[2]
    return (
        k.at[:, slots, :, :limit].set(new_k, mode="drop"),
        v.at[:, slots, :limit].set(new_v, mode="drop"),
    )


@jax.jit
def write(
    layer: Layer, new: tuple[jax.Array, jax.Array], slots: jax.Array, places: jax.Array
) -> Layer:
    """Writes tokens' keys and values into one layer.

    Args:
      layer: k [K, S, C, P] and v [K, S, P, C].
      new: k and v, each [N, K, C].
      slots, places: int32[N], where each token goes; out of range ones are dropped.
    """
    (k, v), (new_k, new_v) = layer, new
    return (
        # Indices on both sides of a slice put their axes first: [N, K, C].
        k.at[:, slots, :, places].set(new_k.astype(k.dtype), mode="drop"),
        v.at[:, slots, places].set(new_v.astype(v.dtype).swapaxes(0, 1), mode="drop"),
    )
