"""Attention within sequences on TPU, by JAX's splash kernel: scores stay in on-chip memory.

Blocks that the causal mask empties are skipped, forwards and backwards, and nothing of the size of
all tokens by all tokens is ever in main memory.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from cai_jax.mesh import fitted
from cai_jax.models.attention import WIDEST

LANES = 128  # tokens are padded to multiples of it
BLOCKS = (512, 256, 128)  # tokens of a block; the first that divides a row's is taken


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    *,
    mesh: jax.sharding.AbstractMesh | None,
    window: jax.Array | int | None = None,
    windows: tuple[int | None, ...] = (None,),
    softcap: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`attention.self_attention`, but for what padding attends to, which is padding.

    The compiler splits no kernel over devices: each takes its own rows and heads.

    Args:
      q: [B, T, H, C].
      k, v: [B, T, K, C].
      segment_ids: int32[B, T].
      mesh: whose rows' axes and `tensor` split B and heads; None for one device.
      window, softcap: as in `self_attention`.
      windows: all that `window` can be; blocks that they empty are skipped too, so that each is a
        kernel of its own.
      interpret: whether to run the kernel's Python, on any device, for tests.

    Returns:
      [B, T, H, C].
    """
    kinds = list(dict.fromkeys(windows))
    ways = [
        functools.partial(_attend, window=w, softcap=softcap, interpret=interpret) for w in kinds
    ]

    def attend(q, k, v, ids, window):
        if len(ways) == 1:
            return ways[0](q, k, v, ids)
        known = jnp.array([w or WIDEST for w in kinds])
        return jax.lax.switch(jnp.argmax(known == window), ways, q, k, v, ids)

    if mesh is not None:
        heads = fitted(mesh, k.shape, "batch", None, "kv_heads").spec
        ids = fitted(mesh, segment_ids.shape, "batch").spec
        specs = (heads, heads, heads, ids, jax.sharding.PartitionSpec())
        # The kernel does not say along which axes its results vary.
        attend = jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)
    return attend(q, k, v, segment_ids, None if len(ways) == 1 else window)


def _attend(
    q, k, v, segment_ids, *, window: int | None, softcap: float | None, interpret: bool
) -> jax.Array:
    """One device's rows and heads."""
    length = q.shape[1]
    filler = -length % LANES
    total = length + filler
    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
    q, k, v = (jnp.pad(x, ((0, 0), (0, filler), (0, 0), (0, 0))).swapaxes(1, 2) for x in (q, k, v))
    ids = jnp.pad(segment_ids, ((0, 0), (0, filler)))
    block = next(size for size in BLOCKS if total % size == 0)
    mask = masks.CausalMask((total, total))
    if window is not None:
        mask = masks.LocalMask((total, total), (window - 1, 0), 0)
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * q.shape[1]),
        block_sizes=splash.BlockSizes(
            block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block,
            block_q_dq=block, block_kv_dq=block,
        ),
        head_shards=1, q_seq_shards=1, attn_logits_soft_cap=softcap, interpret=interpret,
    )  # fmt: skip
    out = jax.vmap(kernel)(q, k, v, splash.SegmentIds(ids, ids))
    return out.swapaxes(1, 2)[:, :length].astype(v.dtype)
