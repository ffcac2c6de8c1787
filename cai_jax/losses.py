"""The training losses: pure functions of float32 arrays that return (loss, count or metrics).

Every mean is over the whole batch it is given: sum over the unmasked elements divided by their
count, at least 1. Under jit a sharded batch is still one batch, so the mean is global.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

Metrics = dict[str, jax.Array]


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of x over the True elements of mask, 0 if there are none: float32[].

    Values under False are replaced before they are multiplied: neither they nor their gradients
    can reach the result, even where they are not finite.
    """
    chex.assert_equal_shape([x, mask])
    kept = jnp.where(mask, x, 0.0)
    return kept.sum(dtype=jnp.float32) / jnp.maximum(mask.sum(dtype=jnp.float32), 1.0)


def cross_entropy(logprobs: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Language-model loss, -sum(mask * logprobs) / sum(mask).

    Args:
      logprobs: float32[...], of the target tokens.
      mask: bool[...], True where the token is a target.

    Returns:
      loss float32[] in nats a token, and count float32[], the number of targets it is a mean
      over: for means over several batches, and for `make_step`'s gradient accumulation.
    """
    return -masked_mean(logprobs, mask), mask.sum(dtype=jnp.float32)


def soft_bradley_terry(
    score_a: jax.Array, score_b: jax.Array, prob_a: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Preference-model loss with soft labels.

    loss = sum_b w_b * -[p log sigmoid(r_A - r_B) + (1 - p) log sigmoid(r_B - r_A)] / sum_b w_b

    With p = 1 it is log(1 + exp(r_bad - r_good)) (Askell et al. 2021, Eq. 3.1; Bai et al.
    2204.05862). Soft p from the feedback model: Bai et al. 2212.08073, section 4.1. Its minimum in
    r_A - r_B is at logit(p).

    Args:
      score_a: float32[B].
      score_b: float32[B].
      prob_a: float32[B], probability that A is better.
      weight: float32[B]; a pair of weight 0 adds nothing to the loss or the normaliser.

    Returns:
      loss float32[] and its normaliser, the sum of weights float32[] (taken as 1e-6 where it is
      less, so a batch of weight 0 has loss 0).
    """
    chex.assert_rank([score_a, score_b, prob_a, weight], 1)
    chex.assert_equal_shape([score_a, score_b, prob_a, weight])
    chex.assert_type([score_a, score_b, prob_a, weight], jnp.float32)
    return _weighted_mean(_soft_logistic(score_a - score_b, prob_a), weight), weight.sum()


def squared_error(
    score: jax.Array, rating: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """L2 loss of a scalar model against ratings.

    loss = sum_b w_b * (s_b - y_b)^2 / sum_b w_b

    Reference: the absolute harmfulness score of Bai et al. 2212.08073, Figure 10.

    Args:
      score: float32[B].
      rating: float32[B], in the units of the score.
      weight: float32[B]; a row of weight 0 adds nothing to the loss or the normaliser.

    Returns:
      loss float32[] in squared units and its normaliser, the sum of weights float32[] (taken as
      1e-6 where it is less, so a batch of weight 0 has loss 0).
    """
    chex.assert_rank([score, rating, weight], 1)
    chex.assert_equal_shape([score, rating, weight])
    chex.assert_type([score, rating, weight], jnp.float32)
    return _weighted_mean(jnp.square(score - rating), weight), weight.sum()


def clipped_policy_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    clip: float,
) -> tuple[jax.Array, Metrics]:
    """PPO's clipped surrogate, per token.

    ratio = exp(logprobs - old_logprobs)
    loss = -mean over mask of min(ratio * A, clip(ratio, 1 - e, 1 + e) * A)

    Reference: Schulman et al. 1707.06347, Eq. 7; e = 0.2 in 2204.05862. No gradient flows through
    old_logprobs or advantages.

    Args:
      logprobs: float32[B, R] of the policy being trained, at the sampling temperature.
      old_logprobs: float32[B, R] of the policy that sampled.
      advantages: float32[B, R].
      mask: bool[B, R], True on sampled tokens; the mean is over them.
      clip: e.

    Returns:
      loss float32[] and metrics: "policy/ratio" (mean), "policy/clip_fraction" (share of tokens
      where the clipped term is the lower), "policy/kl_to_old" (k3 estimate, nats a token).
    """
    chex.assert_rank([logprobs, old_logprobs, advantages, mask], 2)
    chex.assert_equal_shape([logprobs, old_logprobs, advantages, mask])
    chex.assert_type([logprobs, old_logprobs, advantages], jnp.float32)
    advantages = jax.lax.stop_gradient(advantages)
    log_ratio = jnp.where(mask, logprobs - jax.lax.stop_gradient(old_logprobs), 0.0)
    ratio = jnp.exp(log_ratio)
    free = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    metrics = {
        "policy/ratio": masked_mean(ratio, mask),
        "policy/clip_fraction": masked_mean((clipped > free).astype(jnp.float32), mask),
        "policy/kl_to_old": masked_mean(ratio - 1.0 - log_ratio, mask),
    }
    return masked_mean(jnp.maximum(free, clipped), mask), metrics


def clipped_value_loss(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, mask: jax.Array, clip: float
) -> tuple[jax.Array, Metrics]:
    """PPO's clipped value loss, per token.

    v' = old + clip(v - old, -e, e)
    loss = 1/2 mean over mask of max((v - R)^2, (v' - R)^2)

    Reference: the baselines implementation of 1707.06347, as in lm-human-preferences (Ziegler et
    al. 1909.08593). No gradient flows through old_values or returns.

    Args:
      values: float32[B, R] of the value head being trained.
      old_values: float32[B, R] at sampling time.
      returns: float32[B, R].
      mask: bool[B, R], True on sampled tokens; the mean is over them.
      clip: e, in units of the score.

    Returns:
      loss float32[] and metrics: "value/clip_fraction", "value/error" (root mean square of v - R).
    """
    chex.assert_rank([values, old_values, returns, mask], 2)
    chex.assert_equal_shape([values, old_values, returns, mask])
    chex.assert_type([values, old_values, returns], jnp.float32)
    old_values, returns = jax.lax.stop_gradient((old_values, returns))
    clipped_values = old_values + jnp.clip(values - old_values, -clip, clip)
    free = jnp.square(values - returns)
    clipped = jnp.square(clipped_values - returns)
    metrics = {
        "value/clip_fraction": masked_mean((clipped > free).astype(jnp.float32), mask),
        "value/error": jnp.sqrt(jax.lax.stop_gradient(masked_mean(free, mask))),
    }
    return 0.5 * masked_mean(jnp.maximum(free, clipped), mask), metrics


def dpo_loss(
    logprobs_a: jax.Array,
    logprobs_b: jax.Array,
    ref_logprobs_a: jax.Array,
    ref_logprobs_b: jax.Array,
    prob_a: jax.Array,
    weight: jax.Array,
    beta: float,
) -> tuple[jax.Array, Metrics]:
    """Direct preference optimisation with soft labels.

    h = beta * [(log pi(A) - log ref(A)) - (log pi(B) - log ref(B))]
    loss = sum_b w_b * -[p log sigmoid(h) + (1 - p) log sigmoid(-h)] / sum_b w_b

    Reference: Rafailov et al. 2305.18290, Eq. 7, at p = 1; p = 1 - e is its conservative form
    (Mitchell 2023, "A note on DPO with noisy preferences"). No gradient flows through the
    reference's log-probabilities.

    Args:
      logprobs_a, logprobs_b: float32[B], of the policy, summed over the response's tokens and the
        end token.
      ref_logprobs_a, ref_logprobs_b: float32[B], the same of the reference.
      prob_a: float32[B], probability that A is better.
      weight: float32[B]; a pair of weight 0 adds nothing to the loss or the normaliser.
      beta: strength of the pull to the reference.

    Returns:
      loss float32[] and metrics. The implied reward of a response is beta * (log pi - log ref), in
      units of h. Over the pairs whose prob_a is not a half, so that one response is the chosen one:
      "policy/chosen_reward" and "policy/rejected_reward", their difference "policy/margin", and
      "policy/accuracy", the share of margins above 0. Over all pairs: "policy/reference_kl", the
      mean of log ref - log pi, which estimates KL(ref || pi) in nats a response where the reference
      sampled them; "count", the sum of weights, the loss's normaliser.
    """
    arrays = [logprobs_a, logprobs_b, ref_logprobs_a, ref_logprobs_b, prob_a, weight]
    chex.assert_rank(arrays, 1)
    chex.assert_equal_shape(arrays)
    chex.assert_type(arrays, jnp.float32)
    ref_logprobs_a, ref_logprobs_b = jax.lax.stop_gradient((ref_logprobs_a, ref_logprobs_b))
    reward_a = beta * (logprobs_a - ref_logprobs_a)
    reward_b = beta * (logprobs_b - ref_logprobs_b)
    chosen = jnp.where(prob_a > 0.5, reward_a, reward_b)
    rejected = jnp.where(prob_a > 0.5, reward_b, reward_a)
    decided = jnp.where(prob_a == 0.5, 0.0, weight)
    drift = (ref_logprobs_a - logprobs_a + ref_logprobs_b - logprobs_b) / 2
    metrics = {
        "policy/margin": _weighted_mean(chosen - rejected, decided),
        "policy/accuracy": _weighted_mean((chosen > rejected).astype(jnp.float32), decided),
        "policy/chosen_reward": _weighted_mean(chosen, decided),
        "policy/rejected_reward": _weighted_mean(rejected, decided),
        "policy/reference_kl": _weighted_mean(drift, weight),
        "count": weight.sum(),
    }
    loss = _weighted_mean(_soft_logistic(reward_a - reward_b, prob_a), weight)
    return loss, jax.lax.stop_gradient(metrics)


def _soft_logistic(margin: jax.Array, prob: jax.Array) -> jax.Array:
    """-[p log sigmoid(m) + (1 - p) log sigmoid(-m)], elementwise, stable for large |m|."""
    return -(prob * jax.nn.log_sigmoid(margin) + (1.0 - prob) * jax.nn.log_sigmoid(-margin))


def _weighted_mean(x: jax.Array, weight: jax.Array) -> jax.Array:
    return (weight * jnp.where(weight > 0, x, 0.0)).sum() / jnp.maximum(weight.sum(), 1e-6)
