"""Drawing a token from logits."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

BLOCK = 256  # tokens that are drawn together, then told apart


@flax.struct.dataclass
class Rule:
    """How each of R rows samples.

    Attributes:
      temperature: float32[R]; 0 takes the likeliest token.
      top_p: float32[R]; keeps the likeliest tokens that together hold at least this mass.
      top_k: int32[R]; keeps so many of the likeliest tokens, and those as likely as the last; 0
        keeps all.
    """

    temperature: jax.Array
    top_p: jax.Array
    top_k: jax.Array


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
      least, limit: int32, min_new_tokens and max_new_tokens.
      rule: how to sample.
      stop_state: int32, state of the stop automaton.
    """

    active: jax.Array
    fresh: jax.Array
    pending: jax.Array
    key: jax.Array
    segment: jax.Array
    sampled: jax.Array
    least: jax.Array
    limit: jax.Array
    rule: Rule
    stop_state: jax.Array


def sample(
    logits: jax.Array, keys: jax.Array, rule: Rule, end_ids: jax.Array, early: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draws one token a row by inverse CDF.

    Args:
      logits: float32[R, V].
      keys: PRNG keys [R]; two uniform numbers are drawn from each.
      rule: how to sample.
      end_ids: int32[E].
      early: bool[R], rows that must not draw an end token yet.

    Returns:
      tokens int32[R], and their log-probabilities float32[R] in nats at the temperature (1 where
      it is 0), before anything is cut off.
    """
    greedy = rule.temperature <= 0
    scaled = logits / jnp.where(greedy, 1.0, rule.temperature)[:, None]
    maximum = scaled.max(-1, keepdims=True)
    weights = jnp.exp(scaled - maximum)  # unnormalised probabilities
    total = weights.sum(-1)

    def cut(kept):
        """Weights without those that a rule forbids."""
        banned = jnp.where(early[:, None], end_ids, kept.shape[1])
        kept = kept.at[jnp.arange(len(kept))[:, None], banned].set(0.0, mode="drop")
        return jnp.where(kept >= _floor(kept, rule)[:, None], kept, 0.0)

    cutting = jnp.any(((rule.top_p < 1) | (rule.top_k > 0)) & ~greedy) | jnp.any(early)
    kept = jax.lax.cond(cutting, cut, lambda w: w, weights)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
    tokens = jnp.where(greedy, jnp.argmax(kept, -1), _inverse_cdf(kept, uniform))
    chosen = jnp.take_along_axis(scaled, tokens[:, None], 1)[:, 0]
    return tokens.astype(jnp.int32), chosen - maximum[:, 0] - jnp.log(total)


def _inverse_cdf(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """A token drawn in proportion to weights [R, V]: a block by uniform[:, 0], then within it.

    Much cheaper than a Gumbel for each token. A number of its own for each level, because rounding
    then moves BLOCK + V / BLOCK boundaries and not V: the same context in another batch shape
    differs in its last bits, and the fewer boundaries those move, the more rarely another token
    comes of it.
    """
    rows, vocab = weights.shape
    weights = jnp.pad(weights, ((0, 0), (0, -vocab % BLOCK))).reshape(rows, -1, BLOCK)
    sums = weights.sum(-1)
    block = _first_past(sums, uniform[:, 0])
    inside = jnp.take_along_axis(weights, block[:, None, None], 1)[:, 0]
    return block * BLOCK + _first_past(inside, uniform[:, 1])


def _first_past(parts: jax.Array, uniform: jax.Array) -> jax.Array:
    """First index whose running sum passes `uniform` [R] of the whole; never one of zero weight."""
    running = jnp.cumsum(parts, -1)
    passed = (running > uniform[:, None] * running[:, -1:]) & (parts > 0)
    last = parts.shape[-1] - 1 - jnp.argmax((parts > 0)[:, ::-1], -1)  # rounding passed them all
    return jnp.where(passed.any(-1), jnp.argmax(passed, -1), last)


def _floor(weights: jax.Array, rule: Rule) -> jax.Array:
    """The smallest weight that top-k and then top-p keep, float32[R]."""
    ordered = jnp.sort(weights, -1)[:, ::-1]
    most = jnp.where(rule.top_k > 0, rule.top_k, weights.shape[1])
    ordered = jnp.where(jnp.arange(weights.shape[1]) < most[:, None], ordered, 0.0)
    before = jnp.cumsum(ordered, -1) - ordered
    kept = before < rule.top_p[:, None] * ordered.sum(-1, keepdims=True)  # the likeliest always
    return jnp.where(kept & (ordered > 0), ordered, jnp.inf).min(-1)
