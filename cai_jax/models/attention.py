"""Attention, chosen in one place: within a sequence, or over a cache of what was read before."""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from cai_jax.logprobs import softcapped

MASKED = -1e30  # finite, so that a row with nothing to attend to stays finite
WIDEST = 2**31 - 1  # a window that holds any text, where a number must say so


@flax.struct.dataclass
class Part:
    """Keys and values that queries attend to, of one layer.

    Attributes:
      k: [K, R, C, P] a row's own, or [K, C, P] shared by all rows.
      v: [K, R, P, C], or [K, P, C].
      mask: bool, what broadcasts to [R, W, P], query by key.
    """

    k: jax.Array
    v: jax.Array
    mask: jax.Array


def self_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    by_rows: bool,
    window: jax.Array | int | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Softmax attention within a sequence, logits in float32.

    A token sees itself and earlier tokens of its own segment; segment 0 is padding, which none see.

    Args:
      q: [B, T, H, C].
      k: [B, T, K, C]; each key head serves H / K query heads.
      v: [B, T, K, C].
      segment_ids: int32[B, T].
      by_rows: a row after the other, and the backward pass computes a row's weights again, so that
        all of it stays in a CPU's cache and [B, H, T, T] is never whole.
      window: how many tokens a token sees at most, itself among them; None for all.
      softcap: through which scores go, `softcapped`; None for none.

    Returns:
      [B, T, H, C].
    """
    attend_row = functools.partial(_attend_row, window=window, softcap=softcap)
    if by_rows:
        row = jax.checkpoint(attend_row, prevent_cse=False)  # inside a scan CSE cannot undo it
        return jax.lax.map(lambda xs: row(*xs), (q, k, v, segment_ids))
    if softcap is not None:
        return jax.vmap(attend_row)(q, k, v, segment_ids)
    return jax.nn.dot_product_attention(q, k, v, mask=causal_mask(segment_ids, window)[:, None])


def _attend_row(q, k, v, segment_ids, *, window, softcap) -> jax.Array:
    """One row, [T, H, C] and [T, K, C]: kv heads come first, then each is two plain products."""
    t, h, c = q.shape
    kv_heads, mask = k.shape[1], causal_mask(segment_ids[None], window)[0]
    q = (q * c**-0.5).reshape(t, kv_heads, -1, c).transpose(1, 2, 0, 3).reshape(kv_heads, -1, c)
    k, v = k.transpose(1, 0, 2), v.transpose(1, 0, 2)
    scores = jnp.einsum("kmc,kxc->kmx", q, k, preferred_element_type=jnp.float32)
    scores = softcapped(scores, softcap)
    scores = jnp.where(mask, scores.reshape(kv_heads, -1, t, t), MASKED)
    weights = jax.nn.softmax(scores).reshape(kv_heads, -1, t).astype(v.dtype)
    out = jnp.einsum("kmx,kxc->kmc", weights, v).reshape(kv_heads, -1, t, c)
    return out.transpose(2, 0, 1, 3).reshape(t, h, c)


def causal_mask(segment_ids: jax.Array, window: jax.Array | int | None = None) -> jax.Array:
    """bool[B, T, T]: a token sees itself and earlier tokens of its own segment; 0 is padding.

    A segment's tokens stand side by side, so that a window counts places.
    """
    t = segment_ids.shape[1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    mask = same & (segment_ids[:, None, :] > 0) & jnp.tril(jnp.ones((t, t), bool))
    if window is None:
        return mask
    places = jnp.arange(t)
    return mask & (places[:, None] - places < window)


@functools.partial(jax.jit, static_argnames="softcap")
def cached_attention(
    q: jax.Array, parts: tuple[Part, ...], softcap: float | None = None
) -> jax.Array:
    """Exact softmax attention over several parts, without joining them.

    Each part gives unnormalised scores; all share one maximum and one denominator, so the result
    is the softmax over the concatenation, and a part that many rows share is read once. Kv heads
    come first, then rows, so that every product is a batched one without transposing: many times
    faster on CPU.

    Args:
      q: [K, R, W, G, C]; W queries a row, each G heads that share a kv head.
      parts: keys and values, earlier and new.
      softcap: as in `self_attention`.

    Returns:
      [K, R, W, G, C].
    """
    kv_heads, r, w, g, c = q.shape
    q = q * c**-0.5

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        """[K, R, W, G, X] by [K, R, X, Y], or by [K, X, Y] for all rows."""
        shape = (kv_heads, r, w * g) if y.ndim == 4 else (kv_heads, r * w * g)
        spec = "krmx,krxy->krmy" if y.ndim == 4 else "kmx,kxy->kmy"
        x = x.reshape(*shape, x.shape[-1])
        out = jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)
        return out.reshape(kv_heads, r, w, g, -1)

    def scored(part: Part) -> jax.Array:
        mask, scores = part.mask[..., None, :], product(q, part.k.astype(q.dtype))
        return jnp.where(mask, softcapped(scores, softcap), MASKED)

    scores = [scored(part) for part in parts]
    maximum = functools.reduce(jnp.maximum, [s.max(-1, keepdims=True) for s in scores])
    weights = [jnp.exp(s - maximum) for s in scores]
    total = sum(x.sum(-1, keepdims=True) for x in weights)
    out = sum(product(x.astype(p.v.dtype), p.v) for x, p in zip(weights, parts, strict=True))
    return (out / total).astype(q.dtype)
