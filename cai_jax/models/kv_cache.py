"""Keys and values of many slots, layer by layer, written in place."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from cai_jax.mesh import constrain, fitted
from cai_jax.models.config import ModelConfig

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
    def of_layers(cls, layers: list[tuple[jax.Array, jax.Array]]) -> KVCache:
        """From each layer's (k, v)."""
        return cls(*map(tuple, zip(*layers, strict=True)))

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


def constrained(cache: KVCache, mesh: jax.sharding.Mesh | None) -> KVCache:
    """In jitted code, the cache split over the mesh as `empty` splits it."""
    return jax.tree.map(lambda x: constrain(x, mesh, *AXES), cache)


def reads_first(mesh: jax.sharding.Mesh | None) -> bool:
    """Whether a decode step reads a layer's cache before it writes the new token to it.

    On TPU, where XLA reads a layer through on-chip memory: written there, the whole layer is
    carried back (a fifth more bytes a step of an 8B model). On
    CPU the copies come of reading first.
    """
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return platform == "tpu"


def token_bytes(config: ModelConfig, dtype: jnp.dtype) -> int:
    """Bytes that one token takes in all layers."""
    return 2 * config.layers * config.kv_heads * config.head_dim * jnp.dtype(dtype).itemsize


def pick(cache: KVCache, slots: jax.Array, limit: int) -> KVCache:
    """The first `limit` positions of slots int32[R] in any order, repeated ones included."""
    return KVCache(
        tuple(k.at[:, slots, :, :limit].get(mode="clip") for k in cache.k),
        tuple(v.at[:, slots, :limit].get(mode="clip") for v in cache.v),
    )


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
    limit = rows.length
    pairs = lambda name: zip(getattr(cache, name), getattr(rows, name), strict=True)  # noqa: E731
    return KVCache(
        tuple(old.at[:, slots, :, :limit].set(new, mode="drop") for old, new in pairs("k")),
        tuple(old.at[:, slots, :limit].set(new, mode="drop") for old, new in pairs("v")),
    )


@jax.jit
def write(
    layer: tuple[jax.Array, jax.Array],
    new: tuple[jax.Array, jax.Array],
    slots: jax.Array,
    places: jax.Array,
) -> tuple[jax.Array, jax.Array]:
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


def append(cache: KVCache, new: KVCache, slots: jax.Array, places: jax.Array) -> KVCache:
    """`write` in all layers."""
    return KVCache.of_layers(
        [
            write(layer, fresh, slots, places)
            for layer, fresh in zip(
                zip(cache.k, cache.v, strict=True), zip(new.k, new.v, strict=True), strict=True
            )
        ]
    )
