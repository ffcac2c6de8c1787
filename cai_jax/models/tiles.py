"""Exact attention of many rows' tokens to what stands in their slots, tile by tile.

A tile is a few tokens of one row that follow each other. It goes through the keys in blocks, as far
as its own text reaches, and keeps a running maximum and denominator (flash attention). So the work
is what the texts come to, whatever the buffers' sizes, and a block's scores stay in the processor's
cache; lengths are data, and no length compiles anything anew.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from cai_jax.logprobs import softcapped
from cai_jax.models.attention import MASKED
from cai_jax.models.kv_cache import Layer

TILE, WIDEST = 16, 256  # least and most tokens of one row that go through the keys together
BLOCK = 256  # keys that all tokens meet together, of what all rows read first
OWN_BLOCK = 128  # keys of its own that a tile meets together; more in a wider tile

State = tuple[jax.Array, jax.Array, jax.Array]  # maximum, denominator and sum of values


@flax.struct.dataclass
class Tiles:
    """Where the tokens of a list of N stand, in M tiles of T.

    Attributes:
      index: int32[M, T], which token of the list; N for none.
      rows: int32[M], the row.
      first: int32[M], the place in its text of the first token.
      ends: int32[M], how much of its row's slot the tile may see.
      used: int32[], how many tiles hold anything.
    """

    index: jax.Array
    rows: jax.Array
    first: jax.Array
    ends: jax.Array
    used: jax.Array

    @classmethod
    def of(cls, tokens: int, lengths: jax.Array, counts: jax.Array) -> Tiles:
        """Rows' tokens one after the other: counts int32[R] of them behind lengths int32[R]."""
        tile = min(max(TILE, tokens // len(counts)), WIDEST)
        count = (tokens + len(counts) * (tile - 1)) // tile  # whatever the rows' shares
        each = -(-counts // tile)
        last = jnp.cumsum(each)
        number = jnp.arange(count)
        rows = jnp.minimum(jnp.searchsorted(last, number, side="right"), len(counts) - 1)
        within = (number - (last - each)[rows]) * tile
        offset = within[:, None] + jnp.arange(tile)
        ends = jnp.cumsum(counts)
        mine = offset < counts[rows, None]
        index = jnp.where(mine, (ends - counts)[rows, None] + offset, tokens)
        first = lengths[rows] + within
        return cls(index, rows, first, first + mine.sum(-1), last[-1])

    @classmethod
    def behind(cls, lengths: jax.Array, width: int) -> Tiles:
        """`width` tokens in each of R rows that see lengths int32[R] of their slots."""
        rows = jnp.arange(len(lengths))
        index = rows[:, None] * width + jnp.arange(width)
        return cls(index, rows, lengths, lengths, jnp.int32(len(lengths)))


def tiled_attention(
    q: jax.Array,
    held: Layer,
    shared: tuple[jax.Array, jax.Array, jax.Array] | None,
    slots: jax.Array,
    tiles: Tiles,
    before: State | None = None,
    begins: jax.Array | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Each token attends to what all rows read first, and to its slot as far as its tile sees it,
    up to its own place.

    Args:
      q: [N, K, G, C].
      held: k [K, S, C, P] and v [K, S, P, C], the new tokens' among them.
      shared: keys [K, 1, C, P], values [K, 1, P, C] and length int32[], or None.
      slots: int32[R], where each row stands in `held`.
      tiles: of the list.
      before: of `among`, what else each token attends to.
      begins: int32[N], the first place of its slot that each token sees; below 0, so much of the
        end of what all rows read first. None where all is seen.
      softcap: of `logprobs.softcapped`.

    Returns:
      [N, K, G, C]; zeros for padding.
    """
    tokens, kv_heads, group, size = q.shape
    q = (q * size**-0.5).swapaxes(0, 1)
    if before is None:
        before = (
            jnp.full((kv_heads, tokens * group, 1), MASKED, jnp.float32),
            jnp.zeros((kv_heads, tokens * group, 1), jnp.float32),
            jnp.zeros((kv_heads, tokens * group, size), jnp.float32),
        )
    if begins is not None:
        begins = jnp.repeat(begins, group)
    if shared is not None:
        everyone, length = q.reshape(kv_heads, -1, size), shared[2]
        seen = None if begins is None else begins + length
        before = _through(before, everyone, shared[:2], 0, length, None, BLOCK, seen, softcap)
    before = [x.reshape(kv_heads, tokens, group, -1) for x in before]

    def one(number: jax.Array, out: jax.Array) -> jax.Array:
        index, first = tiles.index[number], tiles.first[number]

        def taken(x: jax.Array) -> jax.Array:
            return x.at[:, index].get(mode="fill", fill_value=0).reshape(kv_heads, -1, x.shape[-1])

        places = jnp.repeat(first + jnp.arange(len(index)), group)
        end = tiles.ends[number]
        state = tuple(map(taken, before))
        slot = slots[tiles.rows[number]]
        block = max(OWN_BLOCK, len(index))
        seen = None
        if begins is not None:
            seen = begins.reshape(-1, group).at[index].get(mode="fill", fill_value=0).ravel()
        _, total, values = _through(state, taken(q), held, slot, end, places, block, seen, softcap)
        got = (values / total).astype(q.dtype).reshape(kv_heads, len(index), group, size)
        return out.at[:, index].set(got, mode="drop")

    return jax.lax.fori_loop(0, tiles.used, one, jnp.zeros_like(q)).swapaxes(0, 1)


def among(
    q: jax.Array, k: jax.Array, v: jax.Array, sees: jax.Array, softcap: float | None = None
) -> State:
    """New tokens of R rows, W in each, attend among themselves.

    Args:
      q: [R W, K, G, C].
      k, v: [R W, K, C].
      sees: bool[R, W, W], query by key; itself, always.
      softcap: of `logprobs.softcapped`.

    Returns:
      The state that `tiled_attention` goes on from.
    """
    tokens, kv_heads, group, size = q.shape
    q, k, v = (x.reshape(*sees.shape[:2], kv_heads, -1, size) for x in (q * size**-0.5, k, v))
    scores = jnp.einsum("rwkgc,rukxc->krwgu", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(sees[:, :, None], softcapped(scores, softcap), MASKED)
    maximum = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - maximum)
    values = jnp.einsum(
        "krwgu,rukxc->krwgc", weights.astype(q.dtype), v, preferred_element_type=jnp.float32
    )
    state = maximum, weights.sum(-1, keepdims=True), values
    return tuple(x.reshape(kv_heads, tokens * group, -1) for x in state)


def _through(
    state: State,
    q: jax.Array,
    held: Layer,
    slot: jax.Array | int,
    length: jax.Array,
    places: jax.Array | None,
    block: int,
    begins: jax.Array | None,
    softcap: float | None,
) -> State:
    """Queries [K, Q, C] through one slot's first `length` keys, none behind a query's place or
    before where it begins."""
    k, v = held
    block = min(block, v.shape[2])
    first = 0 if begins is None else jnp.maximum(begins.min(), 0) // block

    def one(number: jax.Array, state: State) -> State:
        maximum, total, values = state
        begin = jnp.minimum(number * block, v.shape[2] - block)
        keys = jax.lax.dynamic_slice(k, (0, slot, 0, begin), (len(k), 1, k.shape[2], block))[:, 0]
        met = jax.lax.dynamic_slice(v, (0, slot, begin, 0), (len(v), 1, block, v.shape[3]))[:, 0]
        place = begin + jnp.arange(block)
        seen = (place >= number * block) & (place < length)
        seen = seen if places is None else seen & (place <= places[:, None])
        seen = seen if begins is None else seen & (place >= begins[:, None])
        scores = jnp.einsum(
            "kqc,kcp->kqp", q, keys.astype(q.dtype), preferred_element_type=jnp.float32
        )
        scores = jnp.where(seen, softcapped(scores, softcap), MASKED)
        higher = jnp.maximum(maximum, scores.max(-1, keepdims=True))
        fade, weights = jnp.exp(maximum - higher), jnp.exp(scores - higher)
        weighted = weights.astype(q.dtype), met.astype(q.dtype)
        new = jnp.einsum("kqp,kpc->kqc", *weighted, preferred_element_type=jnp.float32)
        return higher, total * fade + weights.sum(-1, keepdims=True), values * fade + new

    return jax.lax.fori_loop(first, -(-length // block), one, state)
