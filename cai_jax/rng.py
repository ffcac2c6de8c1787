"""Named key streams: every random number follows from (seed, stream, what it is for).

A key never depends on a position in a batch or on how many keys were drawn before it, so a run
that was killed and continued, or that batches its examples differently, draws the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def key(seed: int, stream: str, *parts: int | str) -> jax.Array:
    """A PRNG key for one purpose.

    Args:
      seed: the run's seed, any integer.
      stream: the purpose, such as "ppo/sample"; two streams share no numbers.
      *parts: what tells the draws of one stream apart, such as an example id or a step.

    Returns:
      A scalar key array. `key(0, "s", 5)` and `key(0, "s", "5")` differ.
    """
    words = np.concatenate([_words(part) for part in (seed, stream, *parts)])
    return _fold(jax.random.key(0), words)


def example_keys(seed: int, stream: str, ids: Sequence[str]) -> jax.Array:
    """Keys of many examples at once: key array[N], element n equal to key(seed, stream, ids[n])."""
    words = np.stack([_words(i) for i in ids]) if len(ids) else np.zeros((0, 2), np.uint32)
    return _fold_each(key(seed, stream), words)


def permutation(n: int, seed: int, stream: str, epoch: int) -> np.ndarray:
    """The order of `n` rows in one epoch, int64[n]; a new order each epoch, no state kept.

    It sorts raw Philox bits, which NumPy promises never to change, unlike its shuffles.
    """
    digest = hashlib.sha256(repr((int(seed), stream, int(epoch))).encode()).digest()
    bits = np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)).random_raw(n)
    return np.argsort(bits, kind="stable")


def counter_bits(shape: Sequence[int], *salts: int | jax.Array) -> jax.Array:
    """A 32-bit hash of each element's index and the salts, uint32[*shape].

    A few integer operations an element (murmur3's finaliser), elementwise over any sharding; for
    rounding and checksums, where threefry would cost more than the work it serves. Not for
    sampling.
    """
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        position = jax.lax.broadcasted_iota(jnp.uint32, tuple(shape), axis)
        index = index + position * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    for salt in salts:
        index = _mix(index ^ _mix(jnp.asarray(salt).astype(jnp.uint32) + jnp.uint32(0x9E3779B9)))
    return _mix(index + jnp.uint32(0x9E3779B9))


def _words(part: int | str) -> np.ndarray:
    """Two 32-bit words: 64 bits keep ids of a few million examples apart, 32 would not."""
    if isinstance(part, str):
        return np.frombuffer(hashlib.sha256(part.encode()).digest()[:8], "<u4")
    value = int(part) % 2**64
    return np.array([value % 2**32, value // 2**32], np.uint32)


@jax.jit
def _fold(base: jax.Array, words: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda k, word: (jax.random.fold_in(k, word), None), base, words)[0]


@jax.jit
def _fold_each(base: jax.Array, words: jax.Array) -> jax.Array:
    return jax.vmap(lambda pair: jax.random.fold_in(jax.random.fold_in(base, pair[0]), pair[1]))(
        words
    )


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
