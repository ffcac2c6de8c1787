"""Attention, chosen in one place: over the sequence itself, or over caches and the sequence."""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a row with nothing to attend to stays finite


@flax.struct.dataclass
class Past:
    """Keys and values computed earlier, of one layer or of all (a leading L axis on k and v).

    Attributes:
      k: [B, K, P, C] a row's own, or [K, P, C] shared by all rows.
      v: the same shape.
      mask: bool[B, P], which positions a row attends to; the same for all layers.
    """

    k: jax.Array
    v: jax.Array
    mask: jax.Array


def self_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax attention within a sequence, logits in float32.

    Args:
      q: [B, T, H, C].
      k: [B, T, K, C]; each key head serves H / K query heads.
      v: [B, T, K, C].
      mask: bool[B, T, T], query by key.

    Returns:
      [B, T, H, C].
    """
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])


def attention_with_past(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, past: tuple[Past, ...]
) -> jax.Array:
    """Exact softmax attention over several parts, without joining them.

    Each part gives unnormalised scores; all share one maximum and one denominator, so the result
    is the softmax over the concatenation, and a part that many rows share is read once.

    Args:
      q: [B, T, H, C].
      k, v: [B, T, K, C], the new tokens' own.
      mask: bool[B, T, T], query by new key.
      past: earlier keys and values of this layer.

    Returns:
      [B, T, H, C].
    """
    b, t, h, c = q.shape
    kv_heads = k.shape[2]
    group = h // kv_heads
    # Queries of one kv head side by side, [B, K, T * G, C]: on CPU a batched product is several
    # times faster when its batch axes lead and its result needs no transposing.
    q = (q * c**-0.5).reshape(b, t, kv_heads, group, c).transpose(0, 2, 1, 3, 4)
    q = q.reshape(b, kv_heads, t * group, c)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    own = Past(k, v, jnp.repeat(mask, group, axis=1)[:, None])
    parts = [own, *(p.replace(mask=p.mask[:, None, None]) for p in past)]

    def product(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
        if y.ndim == 3:  # shared by all rows: one product for each kv head
            x = x.transpose(1, 0, 2, 3).reshape(kv_heads, -1, x.shape[-1])
            out = jnp.einsum(spec.replace("b", ""), x, y, preferred_element_type=jnp.float32)
            return out.reshape(kv_heads, b, t * group, -1).transpose(1, 0, 2, 3)
        return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)

    scores = [
        jnp.where(p.mask, product("bkmc,bkpc->bkmp", q, p.k.astype(q.dtype)), MASKED) for p in parts
    ]
    maximum = functools.reduce(jnp.maximum, [s.max(-1, keepdims=True) for s in scores])
    weights = [jnp.exp(s - maximum) for s in scores]
    total = sum(w.sum(-1, keepdims=True) for w in weights)
    out = sum(
        product("bkmp,bkpc->bkmc", w.astype(p.v.dtype), p.v)
        for w, p in zip(weights, parts, strict=True)
    )
    out = (out / total).astype(v.dtype).reshape(b, kv_heads, t, group, c)
    return out.transpose(0, 2, 1, 3, 4).reshape(b, t, h, c)
