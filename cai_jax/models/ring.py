"""Exact attention where the tokens of a row are split over devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from cai_jax.logprobs import softcapped
from cai_jax.mesh import fitted
from cai_jax.models.attention import MASKED

QUERIES = 128  # whose scores against one device's keys are in memory at a time

Keys = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # keys, values, segment ids, places
Sums = tuple[jax.Array, jax.Array, jax.Array]  # sum of values, denominator, maximum


def ring_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
    window: jax.Array | int | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Causal attention within segments, T split over the mesh's `sequence` axis.

    Each device keeps its queries; keys and values go round the devices, and a running maximum and
    denominator make the softmax whole (arXiv 2310.01889, 2112.05682). The other way, exchanging
    heads for tokens and back (Ulysses, arXiv 2309.14509), can split no further than there are kv
    heads on a device, 8 or fewer in the models of today, and holds every token's keys at once. The
    ring has no such limit and sends less where kv heads are few. Blocks that the causal mask
    empties are computed all the same: the last device has none, and the others would wait for it.

    Args:
      q: [B, T, H, C]; T is a multiple of the axis.
      k, v: [B, T, K, C].
      segment_ids: int32[B, T], as for `attention.causal_mask`.
      mesh: whose rows' and `tensor` axes split B and heads as usual.
      window, softcap: as in `attention.self_attention`. Keys that no window reaches go round too.

    Returns:
      [B, T, H, C].
    """
    heads = fitted(mesh, k.shape, "batch", "tokens", "kv_heads").spec
    ids = fitted(mesh, segment_ids.shape, "batch", "tokens").spec
    window = None if window is None else jnp.asarray(window, jnp.int32)
    ring = functools.partial(_attend, size=mesh.shape["sequence"], softcap=softcap)
    specs = heads, heads, heads, ids, jax.sharding.PartitionSpec()
    return jax.shard_map(ring, mesh=mesh, in_specs=specs, out_specs=heads)(
        q, k, v, segment_ids, window
    )


def _attend(q, k, v, ids, window, *, size: int, softcap: float | None) -> jax.Array:
    """One device's queries to the keys of all `size` devices."""
    b, t, heads, c = q.shape
    places = jax.lax.axis_index("sequence") * t + jnp.arange(t)[None]
    grouped = q.reshape(b, t, k.shape[2], -1, c)
    queries = tuple(_blocks(x) for x in (grouped, ids, places))
    held: Keys = (k, v, ids, places)
    sums = None
    for left in reversed(range(size)):
        # Sent on before they are used, so that sending and computing overlap.
        ahead = _send_on(held, size) if left else held
        sums = _meet(queries, held, sums, window, softcap)
        held = ahead
    out, total, _ = sums
    out = jnp.moveaxis(out / total[..., None], (0, 4), (1, 2))  # [B, blocks, queries, K, G, C]
    return out.reshape(b, -1, heads, c)[:, :t].astype(q.dtype)


def _send_on(held: Keys, size: int) -> Keys:
    return jax.lax.ppermute(held, "sequence", [(i, (i + 1) % size) for i in range(size)])


def _blocks(x: jax.Array) -> jax.Array:
    """[B, T, ...] -> [blocks, B, queries, ...], filled with zeros."""
    t = x.shape[1]
    n = min(QUERIES, t)
    x = jnp.pad(x, [(0, 0), (0, -t % n)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, n, *x.shape[2:]), 1, 0)


def _meet(
    queries: tuple[jax.Array, ...],
    held: Keys,
    before: Sums | None,
    window: jax.Array | int | None,
    softcap: float | None,
) -> Sums:
    """Adds what the held keys and values contribute; [blocks, B, K, G, queries, ...] each.

    The backward pass makes a block's scores again. Gradients of keys and values are summed over
    the blocks in float32 whatever the dtype.
    """
    keys, values, key_ids, key_places = held
    wide_keys, wide_values = keys.astype(jnp.float32), values.astype(jnp.float32)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def block(one):
        (q, ids, places), before = one
        k, v = wide_keys.astype(q.dtype), wide_values.astype(q.dtype)
        sees = (ids[:, :, None] == key_ids[:, None]) & (key_ids > 0)[:, None]
        sees &= places[:, :, None] >= key_places[:, None]
        if window is not None:
            sees &= places[:, :, None] - key_places[:, None] < window
        scores = jnp.einsum("bqkgc,bpkc->bkgqp", q, k, preferred_element_type=jnp.float32)
        scores = softcapped(scores * q.shape[-1] ** -0.5, softcap)
        scores = jnp.where(sees[:, None, None], scores, MASKED)
        maximum = scores.max(-1)
        if before is not None:
            maximum = jnp.maximum(maximum, before[2])
        # Numerator and denominator have the factor in common, so no gradient goes through it.
        maximum = jax.lax.stop_gradient(maximum)
        weights = jnp.exp(scores - maximum[..., None])
        total = weights.sum(-1)
        out = jnp.einsum(
            "bkgqp,bpkc->bkgqc", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        if before is not None:
            scale = jnp.exp(jax.lax.stop_gradient(before[2]) - maximum)
            out += before[0] * scale[..., None]
            total += before[1] * scale
        return out, total, maximum

    return jax.lax.map(block, (queries, before))
