"""The engine's jitted decoding loop: a burst of sampled tokens in many slots.

It works on R of the cache's S slots, so that a few late slots do not cost what all of them do.
Static are the model's shape, the compute dtype, the mesh and buffer sizes; params, prefix, limits
and sampling settings are arguments. On a mesh what the host reads comes whole to every device.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cai_jax.decoding.reading import LOGITS
from cai_jax.decoding.sampling import Draws, sample
from cai_jax.decoding.schedule import END, LENGTH, STOP
from cai_jax.decoding.stops import MATCHED
from cai_jax.mesh import constrain
from cai_jax.models import kv_cache
from cai_jax.models.cached import Prefix, attend_and_write, forward, logits
from cai_jax.models.config import ModelConfig
from cai_jax.models.kv_cache import KVCache
from cai_jax.models.transformer import Params


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
      slots, lengths: int32[R], as in `reading.extend`; all S slots come in their own order.
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
    shared = 0 if prefix is None else prefix.length
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
            limits = config.windows[layer], config.attention_softcap
            return attend_and_write(own, prefix, layer, q, k, v, at, places, mesh, *limits)

        ids = constrain(pending, mesh, "slots")
        hidden, after = forward(config, dtype, params, ids, at + shared, attend)
        after = kv_cache.constrained(KVCache.of_layers(after), mesh)
        return after, constrain(logits(config, params, hidden), mesh, *LOGITS)

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
