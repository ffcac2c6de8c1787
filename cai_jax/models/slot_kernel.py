"""Tiles of queries through slots, on TPU: a Pallas kernel.

A tile is a few queries that look at one slot, each at its first places up to a limit of its own,
or from a beginning of its own to there. It goes through the slot in blocks of keys and keeps a
running maximum and denominator (flash attention). Blocks behind its last limit, and those before
its first beginning, are not fetched.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from cai_jax.logprobs import softcapped
from cai_jax.models.attention import MASKED
from cai_jax.models.kv_cache import Layer
from cai_jax.models.tiles import State

WIDEST = 512  # most queries of a tile; what is wider is parted
BLOCK = 512  # keys that a tile meets together; with the widest, a third of on-chip memory


def attend_tiles(
    q: jax.Array,
    held: Layer,
    slots: jax.Array,
    limits: jax.Array,
    begins: jax.Array | None = None,
    softcap: float | None = None,
    interpret: bool = False,
    used: int | None = None,
) -> State:
    """M tiles of Q queries, each through a slot: the kernel.

    Args:
      q: [K, M, Q, C], scaled.
      held: k [K, S, C, P] and v [K, S, P, C].
      slots: int32[M], where each tile looks; any number in one that sees nothing.
      limits: int32[M, Q], how many of its slot's places each query sees.
      begins: int32[M, Q], the first place of them that it sees; None where that is 0.
      softcap: of `logprobs.softcapped`.
      used: how many tiles see anything, about, for what the compiler is told of the cost; all if
        None.

    Returns:
      Maxima and denominators float32[K, M, Q, 1] and sums of values float32[K, M, Q, C]; MASKED
      and zeros where nothing is seen.
    """
    kv_heads, _, queries, size = q.shape
    parts = -(-queries // WIDEST)
    width = -(-queries // parts)
    filler = ((0, 0), (0, parts * width - queries))
    if begins is not None:
        limits = jnp.where(begins < limits, limits, 0)
        begins = jnp.pad(begins, filler).reshape(-1, width, 1)
    limits = jnp.pad(limits, filler).reshape(-1, width, 1)
    q = jnp.pad(q, ((0, 0), *filler, (0, 0))).reshape(kv_heads, -1, width, size)
    keys, values = held[0].swapaxes(2, 3), held[1]  # as XLA keeps both where tokens are written
    length = values.shape[2]
    block, count = min(BLOCK, length), len(limits)
    slots = jnp.clip(jnp.repeat(slots, parts), 0, values.shape[1] - 1)
    last = -(-limits.max((1, 2)) // block) - 1
    # A tile that sees nothing stays where the one before it ended, so that nothing is fetched.
    stay = jax.lax.cummax(jnp.where(last >= 0, jnp.arange(count), 0))
    first = 0
    if begins is not None:
        lowest = jnp.where(limits > 0, begins, length).min((1, 2))
        first = jnp.maximum(lowest, 0) // block
    slots, first, last = slots[stay], jnp.where(last >= 0, first, last[stay]), last[stay]
    bounds = [limits] if begins is None else [limits, begins]

    def block_of(head, tile, number, slots, first, last):
        return head, slots[tile], jnp.clip(number, first[tile], jnp.maximum(last[tile], 0)), 0

    if not interpret:  # or the compiler may fetch all slots whole, beforehand
        keys, values = (pltpu.with_memory_space_constraint(x, pltpu.HBM) for x in (keys, values))
    by_block = pl.BlockSpec((None, None, block, size), block_of)
    by_tile = {
        x: pl.BlockSpec((None, None, width, x), lambda head, tile, *_: (head, tile, 0, 0))
        for x in (1, size)
    }
    state = pl.pallas_call(
        functools.partial(_kernel, length=length, softcap=softcap, bounds=len(bounds)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(kv_heads, count, -(-length // block)),
            in_specs=[
                *[pl.BlockSpec((None, width, 1), lambda head, tile, *_: (tile, 0, 0))]
                * len(bounds),
                *(by_tile[size], by_block, by_block),
            ],
            out_specs=[by_tile[1], by_tile[1], by_tile[size]],
        ),
        out_shape=[jax.ShapeDtypeStruct((*q.shape[:3], x), jnp.float32) for x in (1, 1, size)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=_cost(q, values, (used or count // parts) * parts),
        interpret=interpret,
        name="slot_attention",
    )(slots, first, last, *bounds, q, keys, values)
    state = (x.reshape(kv_heads, count // parts, parts * width, -1) for x in state)
    return tuple(x[:, :, :queries] for x in state)


def _kernel(slots, first, last, *refs, length: int, softcap: float | None, bounds: int) -> None:
    """A tile [Q, C] meets a block of keys and values [P, C]; its state stays on the chip."""
    del slots
    limits, *begins = refs[:bounds]
    q, k, v, maximum, total, values = refs[bounds:]
    tile, number, block = pl.program_id(1), pl.program_id(2), k.shape[0]

    @pl.when(number == 0)
    def _():
        maximum[...] = jnp.full_like(maximum, MASKED)
        total[...] = jnp.zeros_like(total)
        values[...] = jnp.zeros_like(values)

    @pl.when((number >= first[tile]) & (number <= last[tile]))
    def _():
        place = number * block + jax.lax.broadcasted_iota(jnp.int32, (q.shape[0], block), 1)
        seen = place < limits[...]
        for begin in begins:
            seen &= place >= begin[...]
        met = v[...].astype(q.dtype)
        if length % block:  # behind the end stands anything
            below = jax.lax.broadcasted_iota(jnp.int32, met.shape, 0)
            met = jnp.where(number * block + below < length, met, 0)
        scores = jnp.einsum(
            "qc,pc->qp", q[...], k[...].astype(q.dtype), preferred_element_type=jnp.float32
        )
        scores = jnp.where(seen, softcapped(scores, softcap), MASKED)
        higher = jnp.maximum(maximum[...], scores.max(-1, keepdims=True))
        fade = jnp.exp(maximum[...] - higher)
        weights = jnp.where(seen, jnp.exp(scores - higher), 0)
        new = jnp.dot(weights.astype(q.dtype), met, preferred_element_type=jnp.float32)
        total[...] = total[...] * fade + weights.sum(-1, keepdims=True)
        values[...] = values[...] * fade + new
        maximum[...] = higher


def _cost(q: jax.Array, values: jax.Array, used: int) -> pl.CostEstimate:
    """Of so many tiles that see the whole of their slots."""
    kv_heads, _, width, size = q.shape
    keys = kv_heads * used * values.shape[2]
    return pl.CostEstimate(
        flops=4 * keys * width * size,
        transcendentals=keys * width,
        bytes_accessed=2 * keys * size * values.dtype.itemsize + q.size * (q.dtype.itemsize + 4),
    )
