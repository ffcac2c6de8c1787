"""The engine's three jitted programs: read forced tokens, decode a burst, score options.

Each works on R of the cache's S slots, so that a few late slots do not cost what all of them do.
Static are the model's shape, the compute dtype, buffer sizes and the length up to which slots are
read; params, prefix, masks, limits and sampling settings are arguments.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from cai_jax.decoding.sampling import sample
from cai_jax.decoding.schedule import END, LENGTH, STOP
from cai_jax.decoding.stops import MATCHED
from cai_jax.models import kv_cache
from cai_jax.models.attention import Past
from cai_jax.models.config import ModelConfig
from cai_jax.models.kv_cache import KVCache
from cai_jax.models.transformer import Params, Transformer, causal_mask, logits


@flax.struct.dataclass
class Prefix:
    """What all slots read first. Attributes: cache [L, 1, K, P, C]; length int32[]."""

    cache: KVCache
    length: jax.Array


@flax.struct.dataclass
class Draws:
    """The sampling rows of a burst, all [R].

    Attributes:
      active: bool, rows that sample; the others are carried along unchanged.
      fresh: bool, rows whose first token comes from the stored logits.
      pending: int32, the newest token of a row that is not fresh; not yet read.
      key: uint32[R, 2], the example's key.
      segment: int32, index of the segment, folded into the key.
      sampled: int32, tokens the segment already has, folded into the key.
      limit: int32, max_new_tokens.
      temperature, top_p: float32.
      stop_state: int32, state of the stop automaton.
    """

    active: jax.Array
    fresh: jax.Array
    pending: jax.Array
    key: jax.Array
    segment: jax.Array
    sampled: jax.Array
    limit: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    stop_state: jax.Array


def _pick(cache: KVCache, slots: jax.Array, limit: int) -> KVCache:
    """The first `limit` positions of distinct slots, copied out; all slots come in their order."""
    if slots.shape[0] == cache.k.shape[1]:
        return jax.tree.map(lambda x: x[:, :, :, :limit], cache)
    return _gather(cache, slots, limit)


def _gather(cache: KVCache, slots: jax.Array, limit: int) -> KVCache:
    """The first `limit` positions of any slots in any order, repeated ones included."""
    return jax.tree.map(lambda x: x[:, slots, :, :limit], cache)


def _parts(own: KVCache, lengths: jax.Array, prefix: Prefix | None) -> tuple[Past, ...]:
    """What rows attend to besides the new tokens."""
    parts = ()
    if prefix is not None:
        parts += (kv_cache.shared_past(prefix.cache, prefix.length, lengths.shape[0]),)
    if own.k.shape[3]:
        parts += (kv_cache.past(own, lengths),)
    return parts


def _starts(lengths: jax.Array, prefix: Prefix | None) -> jax.Array:
    return lengths if prefix is None else lengths + prefix.length


@functools.partial(
    jax.jit, static_argnames=("config", "dtype", "limit"), donate_argnames=("cache", "last_logits")
)
def extend(
    params: Params,
    cache: KVCache,
    last_logits: jax.Array,
    prefix: Prefix | None,
    slots: jax.Array,
    lengths: jax.Array,
    tokens: jax.Array,
    counts: jax.Array,
    *,
    config: ModelConfig,
    dtype: jnp.dtype,
    limit: int,
) -> tuple[KVCache, jax.Array]:
    """Reads forced tokens into slots.

    Args:
      cache: [L, S, K, P, C].
      last_logits: float32[S, V], after each slot's newest token.
      prefix: shared by all rows, or None.
      slots: int32[R]; S marks a row that is only padding.
      lengths: int32[R], tokens already in each slot.
      tokens: int32[R, T], right-padded.
      counts: int32[R], how many of them are real.
      limit: static; no row's slot holds more than this.

    Returns:
      The cache and the logits, rows of `slots` brought up to date.
    """
    offsets = jnp.arange(tokens.shape[1])
    real = offsets < counts[:, None]
    hidden, new = Transformer(config, dtype).apply(
        {"params": _trunk(params)},
        tokens,
        _starts(lengths, prefix)[:, None] + offsets,
        causal_mask(real.astype(jnp.int32)),
        _parts(_pick(cache, slots, limit), lengths, prefix),
    )
    last = jnp.take_along_axis(hidden, jnp.maximum(counts - 1, 0)[:, None, None], 1)[:, 0]
    last_logits = last_logits.at[slots].set(logits(params, last), mode="drop")
    return kv_cache.write(cache, new, slots, lengths, counts), last_logits


@functools.partial(jax.jit, static_argnames=("limit",), donate_argnames=("cache",))
def fork(cache: KVCache, sources: jax.Array, targets: jax.Array, *, limit: int) -> KVCache:
    """Copies the first `limit` positions of slots to other slots; int32[R] each, S drops a row."""
    put = lambda x: x.at[:, targets, :, :limit].set(x[:, sources, :, :limit], mode="drop")  # noqa: E731
    return jax.tree.map(put, cache)


@functools.partial(
    jax.jit, static_argnames=("config", "dtype", "limit", "steps"), donate_argnames=("cache",)
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
    limit: int,
    steps: int,
) -> tuple[KVCache, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Samples up to `steps` tokens a row; returns early once `enough` rows have finished.

    Args:
      slots, lengths: int32[R], as in `extend`.
      draws: what and how to sample.
      stop_table: int16[N, V], the stop automaton.
      end_ids: int32[E], tokens that end a reply.
      enough: int32[], finished rows after which the host has work to hand out.
      limit: static; positions of a slot that are read; holds what the burst adds.

    Returns:
      cache, tokens int32[R, steps], logprobs float32[R, steps], counts int32[R] of tokens drawn,
      stop_state int32[R], reason int32[R] (0 for rows that go on).
    """
    module, trunk = Transformer(config, dtype), _trunk(params)
    rows = jnp.arange(slots.shape[0])
    stop_table = stop_table.astype(jnp.int32)

    def draw(logits_now, drawing, state):
        """Samples for `drawing` rows and notes which of them are finished."""
        tokens, logprobs, counts, stop_state, reason, pending = state
        keys = jax.random.wrap_key_data(draws.key)
        keys = jax.vmap(jax.random.fold_in)(keys, draws.segment)
        keys = jax.vmap(jax.random.fold_in)(keys, draws.sampled + counts)
        token, logprob = sample(logits_now, keys, draws.temperature, draws.top_p)
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

    def forward(own, pending, counts, running):
        """Reads each running row's pending token."""
        at = lengths + counts - draws.fresh
        hidden, new = module.apply(
            {"params": trunk},
            pending[:, None],
            _starts(at, prefix)[:, None],
            jnp.ones((slots.shape[0], 1, 1), bool),
            _parts(own, at, prefix),
        )
        own = kv_cache.write(own, new, rows, at, running.astype(jnp.int32))
        return own, logits(params, hidden[:, 0])

    def running(state):
        return draws.active & (state[4] == 0)

    def going_on(carry):
        step, _, state = carry
        live = running(state)
        return (step < steps) & live.any() & ((draws.active & ~live).sum() < enough)

    def body(carry):
        step, own, state = carry
        live = running(state)
        own, now = forward(own, state[5], state[2], live)
        return step + 1, own, draw(now, live, state)

    nothing = jnp.zeros((slots.shape[0],), jnp.int32)
    state = (
        jnp.zeros((slots.shape[0], steps), jnp.int32),
        jnp.zeros((slots.shape[0], steps), jnp.float32),
        nothing,
        draws.stop_state,
        nothing,
        draws.pending,
    )
    stored = last_logits.at[slots].get(mode="clip")
    state = draw(stored, draws.active & draws.fresh, state)
    own = _pick(cache, slots, limit)
    _, own, state = jax.lax.while_loop(going_on, body, (jnp.int32(1), own, state))

    put = lambda old, new: old.at[:, slots, :, :limit].set(new, mode="drop")  # noqa: E731
    return jax.tree.map(put, cache, own), *state[:5]


@functools.partial(jax.jit, static_argnames=("config", "dtype", "limit"))
def score(
    params: Params,
    cache: KVCache,
    last_logits: jax.Array,
    prefix: Prefix | None,
    slots: jax.Array,
    lengths: jax.Array,
    tokens: jax.Array,
    counts: jax.Array,
    *,
    config: ModelConfig,
    dtype: jnp.dtype,
    limit: int,
) -> jax.Array:
    """Summed log-probability float32[R] of option tokens, one option a row, after a slot's context.

    Args:
      slots, lengths: int32[R], each row's slot and how much of it is context; slots repeat.
      tokens: int32[R, T], right-padded options.
      counts: int32[R], their lengths.
    """
    stored = last_logits.at[slots].get(mode="clip")
    total = _chosen(stored, tokens[:, 0])
    if tokens.shape[1] == 1:
        return total
    offsets = jnp.arange(tokens.shape[1] - 1)
    real = offsets < counts[:, None] - 1
    hidden, _ = Transformer(config, dtype).apply(
        {"params": _trunk(params)},
        tokens[:, :-1],
        _starts(lengths, prefix)[:, None] + offsets,
        causal_mask(real.astype(jnp.int32)),
        _parts(_gather(cache, slots, limit), lengths, prefix),
    )
    later = _chosen(logits(params, hidden), tokens[:, 1:])
    return total + jnp.where(real, later, 0.0).sum(-1)


def _chosen(scores: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probabilities of `tokens` [...] under logits [..., V]."""
    picked = jnp.take_along_axis(scores, tokens[..., None], -1)[..., 0]
    return picked - jax.nn.logsumexp(scores, -1)


def _trunk(params: Params) -> Params:
    return {k: v for k, v in params.items() if k not in ("lm_head", "scalar_head")}
