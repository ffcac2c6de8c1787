"""Drawing a token from logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp

BLOCK = 256  # tokens that are drawn together, then told apart


def sample(
    logits: jax.Array, keys: jax.Array, temperature: jax.Array, top_p: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draws one token a row by inverse CDF.

    Args:
      logits: float32[S, V].
      keys: PRNG keys [S]; two uniform numbers are drawn from each.
      temperature: float32[S]; 0 takes the likeliest token.
      top_p: float32[S]; keeps the likeliest tokens that together hold at least this mass.

    Returns:
      tokens int32[S], and their log-probabilities float32[S] in nats at the temperature (1 where
      it is 0), before top-p.
    """
    greedy = temperature <= 0
    scaled = logits / jnp.where(greedy, 1.0, temperature)[:, None]
    maximum = scaled.max(-1, keepdims=True)
    weights = jnp.exp(scaled - maximum)  # unnormalised probabilities
    total = weights.sum(-1)
    kept = jax.lax.cond(
        jnp.any((top_p < 1) & ~greedy),
        lambda w: jnp.where(w >= _nucleus_floor(w, total, top_p)[:, None], w, 0.0),
        lambda w: w,
        weights,
    )
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
    tokens = jnp.where(greedy, jnp.argmax(logits, -1), _inverse_cdf(kept, uniform))
    chosen = jnp.take_along_axis(scaled, tokens[:, None], 1)[:, 0]
    return tokens.astype(jnp.int32), chosen - maximum[:, 0] - jnp.log(total)


def _inverse_cdf(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """A token drawn in proportion to weights [S, V]: a block by uniform[:, 0], then within it.

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
    """First index whose running sum passes `uniform` [S] of the whole; never one of zero weight."""
    running = jnp.cumsum(parts, -1)
    passed = (running > uniform[:, None] * running[:, -1:]) & (parts > 0)
    last = parts.shape[-1] - 1 - jnp.argmax((parts > 0)[:, ::-1], -1)  # rounding passed them all
    return jnp.where(passed.any(-1), jnp.argmax(passed, -1), last)


def _nucleus_floor(weights: jax.Array, total: jax.Array, top_p: jax.Array) -> jax.Array:
    """The smallest weight that the nucleus keeps, float32[S]."""
    ordered = jnp.sort(weights, -1)[:, ::-1]
    before = jnp.cumsum(ordered, -1) - ordered
    kept = before < top_p[:, None] * total[:, None]  # the likeliest token always
    return jnp.where(kept, ordered, jnp.inf).min(-1)
