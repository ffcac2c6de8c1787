"""The engine's jitted programs: read forced tokens, sample a burst, score options, copy slots.

Each works on R of the cache's S slots, so that a few late slots do not cost what all of them do.
Static are the model's shape, the compute dtype, the mesh and buffer sizes; params, prefix, masks,
limits and sampling settings are arguments. On a mesh slots are split over data and fsdp and heads
over tensor; what the host reads comes whole to every device.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cai_jax.decoding.sampling import Draws, sample
from cai_jax.decoding.schedule import END, LENGTH, STOP
from cai_jax.decoding.stops import MATCHED
from cai_jax.mesh import constrain, fitted
from cai_jax.models import kv_cache
from cai_jax.models.attention import cached_attention
from cai_jax.models.cached import (
    Layout,
    Prefix,
    attend_and_write,
    cached_part,
    forward,
    logits,
    new_part,
    shared_part,
)
from cai_jax.models.config import ModelConfig
from cai_jax.models.kv_cache import KVCache
from cai_jax.models.transformer import Params

LOGITS = ("slots", "vocab")  # names of the axes of the logits that are kept


def no_logits(config: ModelConfig, slots: int, mesh: Mesh | None) -> jax.Array:
    """What `extend` keeps logits in: zeros float32[S, V]."""
    shape = (slots, config.vocab_size)
    return jnp.zeros(shape, jnp.float32, device=fitted(mesh, shape, *LOGITS))


@functools.partial(
    jax.jit,
    static_argnames=("config", "dtype", "mesh", "width", "limit"),
    donate_argnames=("cache", "last_logits"),
)
def extend(
    params: Params,
    cache: KVCache,
    last_logits: jax.Array,
    prefix: Prefix | None,
    slots: jax.Array,
    lengths: jax.Array,
    counts: jax.Array,
    ids: jax.Array,
    *,
    config: ModelConfig,
    dtype: jnp.dtype,
    mesh: Mesh | None = None,
    width: int,
    limit: int,
) -> tuple[KVCache, jax.Array]:
    """Reads forced tokens into slots.

    Args:
      params: in the layout of `models.cached.unstacked`.
      cache: of S slots.
      last_logits: float32[S, V], after each slot's newest token.
      prefix: shared by all rows, or None.
      slots: int32[R], distinct; S marks a row that is only padding.
      lengths: int32[R], tokens already in each slot.
      counts: int32[R], how many each row reads; at most `width`.
      ids: int32[N], the rows' tokens one after the other, then padding.
      width: static; W.
      limit: static; no row's slot holds more than this before.

    Returns:
      The cache and the logits, rows of `slots` brought up to date.
    """
    ends = jnp.cumsum(counts)
    number = jnp.arange(ids.shape[0])
    rows = jnp.searchsorted(ends, number, side="right")
    offsets = number - (ends - counts).at[rows].get(mode="clip")
    places = lengths.at[rows].get(mode="clip") + offsets
    layout = Layout.of(rows, offsets, slots.shape[0], width)
    earlier = kv_cache.pick(cache, slots, limit)
    stand = (jnp.arange(limit) < lengths[:, None])[:, None]
    causal = jnp.tril(jnp.ones((width, width), bool))

    def attend(layer, q, k, v):
        parts = (
            *shared_part(prefix, layer),
            *cached_part(earlier, layer, stand),
            new_part(layout.to_rows(k), layout.to_rows(v), causal),
        )
        return layout.to_list(cached_attention(layout.to_rows(q), parts)), (k, v)

    ids = constrain(ids, mesh, "slots")
    hidden, new = forward(config, dtype, params, ids, places + _shared(prefix), attend)
    last = hidden.at[:, jnp.maximum(ends - 1, 0)].get(mode="clip")
    last_logits = last_logits.at[slots].set(logits(params, last), mode="drop")
    to = slots.at[rows].get(mode="fill", fill_value=cache.slots)
    cache = kv_cache.append(cache, KVCache.of_layers(new), to, places)
    return kv_cache.constrained(cache, mesh), constrain(last_logits, mesh, *LOGITS)


@functools.partial(jax.jit, static_argnames=("limit", "mesh"), donate_argnames=("cache",))
def fork(
    cache: KVCache, sources: jax.Array, targets: jax.Array, *, limit: int, mesh: Mesh | None = None
) -> KVCache:
    """Copies the first `limit` positions of slots to other slots; int32[R] each, S drops a row."""
    copied = kv_cache.put(cache, targets, kv_cache.pick(cache, sources, limit))
    return kv_cache.constrained(copied, mesh)


@functools.partial(
    jax.jit,
    static_argnames=("config", "dtype", "mesh", "limit", "steps"),
    donate_argnames=("cache",),
)
def decode(
    params: Params,
    cache: KVCache,
    last_logits: jax.Array,
    prefix: Prefix | None,
    slots: jax.Array,
    lengths: jax.Array,
    draws: Draws,
    stop_table: jax.Array,
    end_ids: jax.Array,
    enough: jax.Array,
    *,
    config: ModelConfig,
    dtype: jnp.dtype,
    mesh: Mesh | None = None,
    limit: int,
    steps: int,
) -> tuple[KVCache, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Samples up to `steps` tokens a row; returns early once `enough` rows have finished.

    Args:
      slots, lengths: int32[R], as in `extend`; all S slots come in their own order.
      draws: what and how to sample.
      stop_table: int16[N, V], the stop automaton.
      end_ids: int32[E], tokens that end a reply.
      enough: int32[], finished rows after which the host has work to hand out.
      limit: static; positions of a slot that are read; holds what the burst adds.

    Returns:
      cache, tokens int32[R, steps], logprobs float32[R, steps], counts int32[R] of tokens drawn,
      stop_state int32[R], reason int32[R] (0 for rows that go on).
    """
    rows, nothing = jnp.arange(slots.shape[0]), jnp.zeros_like(lengths)
    stop_table = stop_table.astype(jnp.int32)
    keys = jax.random.wrap_key_data(draws.key)
    keys = jax.vmap(jax.random.fold_in)(keys, draws.segment)

    def draw(logits_now, drawing, state):
        """Samples for `drawing` rows and notes which of them are finished."""
        tokens, logprobs, counts, stop_state, reason, pending = state
        step_keys = jax.vmap(jax.random.fold_in)(keys, draws.sampled + counts)
        early = draws.sampled + counts < draws.least
        scores = constrain(logits_now, mesh, "rows")
        token, logprob = sample(scores, step_keys, draws.rule, end_ids, early)
        token, logprob = constrain(token, mesh), constrain(logprob, mesh)
        column = jnp.where(drawing, counts, steps)
        tokens = tokens.at[rows, column].set(token, mode="drop")
        logprobs = logprobs.at[rows, column].set(logprob, mode="drop")
        counts = counts + drawing
        stop_state = jnp.where(drawing, stop_table[stop_state, token], stop_state)
        now = jnp.where(draws.sampled + counts >= draws.limit, LENGTH, 0)
        now = jnp.where(stop_state == MATCHED, STOP, now)
        now = jnp.where((token[:, None] == end_ids).any(-1), END, now)
        reason = jnp.where(drawing, now, reason)
        return tokens, logprobs, counts, stop_state, reason, jnp.where(drawing, token, pending)

    def read(own, pending, counts, live):
        """Reads each live row's pending token."""
        at = lengths + counts - draws.fresh
        places = jnp.where(live, at, limit)

        def attend(layer, q, k, v):
            return attend_and_write(own, prefix, layer, q, k, v, at, places, mesh)

        ids = constrain(pending, mesh, "slots")
        hidden, after = forward(config, dtype, params, ids, at + _shared(prefix), attend)
        after = kv_cache.constrained(KVCache.of_layers(after), mesh)
        return after, constrain(logits(params, hidden), mesh, *LOGITS)

    def going(state):
        return draws.active & (state[4] == 0)

    def going_on(carry):
        step, _, state = carry
        live = going(state)
        return (step < steps) & live.any() & ((draws.active & ~live).sum() < enough)

    def body(carry):
        step, own, state = carry
        live = going(state)
        own, now = read(own, state[5], state[2], live)
        return step + 1, own, draw(now, live, state)

    state = (
        jnp.zeros((slots.shape[0], steps), jnp.int32),
        jnp.zeros((slots.shape[0], steps), jnp.float32),
        nothing,
        draws.stop_state,
        nothing,
        draws.pending,
    )
    everything = slots.shape[0] == cache.slots
    stored = last_logits if everything else last_logits.at[slots].get(mode="clip")
    state = draw(stored, draws.active & draws.fresh, state)
    own = kv_cache.front(cache, limit) if everything else kv_cache.pick(cache, slots, limit)
    own = kv_cache.constrained(own, mesh)
    _, own, state = jax.lax.while_loop(going_on, body, (jnp.int32(1), own, state))
    cache = kv_cache.put_front(cache, own) if everything else kv_cache.put(cache, slots, own)
    return kv_cache.constrained(cache, mesh), *(constrain(x, mesh) for x in state[:5])


@functools.partial(jax.jit, static_argnames=("config", "dtype", "mesh", "limit"))
def score(
    params: Params,
    cache: KVCache,
    last_logits: jax.Array,
    prefix: Prefix | None,
    slots: jax.Array,
    lengths: jax.Array,
    nodes: jax.Array | None,
    depths: jax.Array | None,
    sees: jax.Array | None,
    after: jax.Array,
    ids: jax.Array,
    *,
    config: ModelConfig,
    dtype: jnp.dtype,
    mesh: Mesh | None = None,
    limit: int,
) -> jax.Array:
    """Log-probabilities float32[R, E] of tokens of options, each after its context.

    A row's options form a tree, so that what they have in common is read once, and all are read in
    one pass behind the slot's cache, which is left as it was.

    Args:
      slots, lengths: int32[R], distinct rows and how much of each is context.
      nodes: int32[R, W], the tokens that another token follows, padded at will. This and the next
        two are None where every option is one token.
      depths: int32[R, W], how many tokens of its option stand before a node.
      sees: bool[R, W, W], which of its row's nodes a node attends to; itself, always.
      after: int32[R, E], what each token follows: -1 is the context, else a node.
      ids: int32[R, E], the tokens, padded at will.
      limit: static; holds each row's context.
    """
    scores = last_logits.at[slots].get(mode="clip")[:, None]
    if nodes is not None:
        earlier = kv_cache.pick(cache, slots, limit)
        stand = (jnp.arange(limit) < lengths[:, None])[:, None]

        def attend(layer, q, k, v):
            q, k, v = map(in_rows, (q, k, v))
            parts = (
                *shared_part(prefix, layer),
                *cached_part(earlier, layer, stand),
                new_part(k, v, sees),
            )
            out = jnp.moveaxis(cached_attention(q, parts), 0, 2)
            return out.reshape(nodes.size, *out.shape[2:]), None

        def in_rows(x):
            return jnp.moveaxis(x.reshape(*nodes.shape, *x.shape[1:]), 2, 0)

        positions = lengths[:, None] + depths + _shared(prefix)
        hidden, _ = forward(config, dtype, params, nodes.ravel(), positions.ravel(), attend)
        after_nodes = logits(params, hidden).reshape(*nodes.shape, -1)
        scores = jnp.concatenate([scores, after_nodes], 1)
    total = jax.nn.logsumexp(scores, -1)
    row = jnp.arange(slots.shape[0])[:, None]
    return constrain(scores[row, after + 1, ids] - total[row, after + 1], mesh)


def _shared(prefix: Prefix | None) -> jax.Array | int:
    """How many tokens stand before a row's own."""
    return 0 if prefix is None else prefix.length
