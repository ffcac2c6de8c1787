"""Attention, chosen in one place: over the sequence itself, or over caches and the sequence."""

from __future__ import annotations

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
    q = (q * c**-0.5).reshape(b, t, kv_heads, h // kv_heads, c)

    def scores_of(part: Past) -> jax.Array:
        keys = "kpc" if part.k.ndim == 3 else "bkpc"
        s = jnp.einsum(f"btkgc,{keys}->bkgtp", q, part.k, preferred_element_type=jnp.float32)
        return jnp.where(part.mask[:, None, None, None], s, MASKED)

    own = jnp.einsum("btkgc,bukc->bkgtu", q, k, preferred_element_type=jnp.float32)
    own = jnp.where(mask[:, None, None], own, MASKED)
    scores = [own, *map(scores_of, past)]
    maximum = jnp.max(jnp.stack([s.max(-1) for s in scores]), 0)[..., None]
    weights = [jnp.exp(s - maximum) for s in scores]
    total = sum(w.sum(-1) for w in weights)  # [B, K, G, T]

    out = jnp.einsum("bkgtu,bukc->btkgc", weights[0].astype(v.dtype), v)
    for part, w in zip(past, weights[1:], strict=True):
        values = "kpc" if part.v.ndim == 3 else "bkpc"
        out += jnp.einsum(f"bkgtp,{values}->btkgc", w.astype(part.v.dtype), part.v)
    out = out / total.transpose(0, 3, 1, 2)[..., None].astype(out.dtype)
    return out.reshape(b, t, h, c)
