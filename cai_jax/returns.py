"""From scores to advantages: KL-shaped rewards, GAE, leave one out, whitening."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

import chex
import jax
import jax.numpy as jnp

from cai_jax import losses
from cai_jax.logprobs import KL_ESTIMATORS


def last_index(mask: jax.Array) -> jax.Array:
    """Index of the last True of each row, wherever the padding is: bool[B, T] -> int32[B].

    A row without any True gives T - 1.
    """
    chex.assert_rank(mask, 2)
    length = mask.shape[1]
    return length - 1 - jnp.argmax(mask[:, ::-1], axis=1).astype(jnp.int32)


def agreed_score(scores: jax.Array, deviations: float) -> jax.Array:
    """What an ensemble says of responses: its members' mean, less where they disagree.

    mean - deviations * standard deviation, over the members. Where a policy has left what the
    members learnt from they differ, so it is not drawn to what only some of them like
    (2310.02743; they subtract the variance).

    Args:
      scores: float32[M, B], of M members.
      deviations: at least 0.

    Returns:
      float32[B].
    """
    chex.assert_rank(scores, 2)
    chex.assert_type(scores, jnp.float32)
    return scores.mean(0) - deviations * scores.std(0)


def baseline(scores: Sequence[float], scale: bool) -> tuple[float, float]:
    """What is subtracted from every score and what the difference is divided by.

    Args:
      scores: of the policy's start; none where nothing is subtracted.
      scale: whether to divide by their standard deviation; else by 1.

    Raises:
      ValueError: all are the same, which cannot be divided by.
    """
    if not scores:
        return 0.0, 1.0
    if not scale:
        return fmean(scores), 1.0
    if not (deviation := pstdev(scores)):
        raise ValueError(
            f"all {len(scores)} responses that give ppo its baseline have the score {scores[0]}; "
            "set ppo.scale_score=False, or raise ppo.baseline_responses."
        )
    return fmean(scores), deviation


def normalised_score(
    score: jax.Array, truncated: jax.Array, mean: float, deviation: float, penalty: float
) -> jax.Array:
    """What a response is rewarded with: (score - mean) / deviation - [it was cut off] * penalty.

    Args:
      score: float32[B].
      truncated: bool[B], True where sampling met its limit.
      mean, deviation: of the scores of the policy's start; 0 and 1 leave the score as it is.
      penalty: in the units of the result.

    Returns:
      float32[B].
    """
    chex.assert_rank([score, truncated], 1)
    chex.assert_equal_shape([score, truncated])
    chex.assert_type(score, jnp.float32)
    return (score - mean) / deviation - jnp.where(truncated, penalty, 0.0)


def shaped_rewards(
    score: jax.Array,
    logprobs: jax.Array,
    ref_logprobs: jax.Array,
    mask: jax.Array,
    kl_coefficient: float,
    estimator: str = "k1",
    placement: str = "tokens",
) -> jax.Array:
    """Per-token rewards of a rollout.

    r_t = -kl_coefficient * kl_t + [t is the last real token] * score

    Reference: r_total = r_PM - lambda * KL in 2204.05862, section 4.1, with the KL spread over the
    tokens as in Ziegler et al. 1909.08593, Eq. 2. The last real token is the last True of the
    mask: the end token where one was sampled. Rewards under False are 0; a row without any real
    token gets none.

    Args:
      score: float32[B].
      logprobs: float32[B, R] of the policy that sampled.
      ref_logprobs: float32[B, R] of the reference.
      mask: bool[B, R].
      kl_coefficient: lambda, at least 0.
      estimator: of kl_t from the two log-probabilities, a key of logprobs.KL_ESTIMATORS.
      placement: "tokens", or "last_token" for the whole penalty of a response at its last token.

    Returns:
      float32[B, R].
    """
    chex.assert_rank([score, logprobs, ref_logprobs, mask], [1, 2, 2, 2])
    chex.assert_equal_shape([logprobs, ref_logprobs, mask])
    chex.assert_type([score, logprobs, ref_logprobs], jnp.float32)
    penalty = -kl_coefficient * KL_ESTIMATORS[estimator](logprobs, ref_logprobs)
    is_last = jnp.arange(mask.shape[1]) == last_index(mask)[:, None]
    if placement == "last_token":
        whole = jnp.where(mask, penalty, 0.0).sum(-1, keepdims=True)
        penalty = jnp.where(is_last, whole, 0.0)
    return jnp.where(mask, penalty + jnp.where(is_last, score[:, None], 0.0), 0.0)


def adapted_kl_coefficient(
    coefficient: float, kl: float, target: float, horizon: int, responses: int
) -> float:
    """The KL coefficient after an update on so many responses whose mean KL is `kl`.

    e = clip(kl / target - 1, -0.2, 0.2);  coefficient * (1 + e * responses / horizon)

    Reference: Ziegler et al. 1909.08593, section 2.2, whose K_beta is responses / horizon.

    Args:
      kl, target: nats a response; a target of 0 leaves the coefficient as it is.
    """
    if not target:
        return coefficient
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * responses / horizon)


def leave_one_out(rewards: jax.Array, samples: int) -> jax.Array:
    """Each response's reward less the mean reward of the others to the same prompt.

    A_i = r_i - 1 / (k - 1) * sum over j != i of r_j

    Reference: REINFORCE leave-one-out, Ahmadian et al. 2402.14740.

    Args:
      rewards: float32[B], of whole responses; those to one prompt stand together.
      samples: k, responses to a prompt, at least 2; B is a multiple of it.

    Returns:
      float32[B].
    """
    chex.assert_rank(rewards, 1)
    chex.assert_type(rewards, jnp.float32)
    groups = rewards.reshape(-1, samples)
    others = (groups.sum(1, keepdims=True) - groups) / (samples - 1)
    return (groups - others).reshape(-1)


def gae(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, gamma: float, lam: float
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation along each response.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lambda A_{t+1};  R_t = A_t + V_t

    Reference: Schulman et al. 1506.02438, Eqs. 11 and 16. A response is an episode: after its last
    real token V and A are 0 (no bootstrap), also where sampling stopped at the length limit.
    Masked tokens are not part of the episode: the recursion passes over them, so what they hold
    is never read.

    Args:
      rewards: float32[B, R].
      values: float32[B, R], of the state before each token.
      mask: bool[B, R].
      gamma: discount a token.
      lam: lambda.

    Returns:
      advantages float32[B, R] and returns float32[B, R], both 0 under False.
    """
    chex.assert_rank([rewards, values, mask], 2)
    chex.assert_equal_shape([rewards, values, mask])
    chex.assert_type([rewards, values], jnp.float32)

    def back(carry, xs):
        next_advantage, next_value = carry
        reward, value, real = xs
        advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        carry = (
            jnp.where(real, advantage, next_advantage),
            jnp.where(real, value, next_value),
        )
        return carry, jnp.where(real, advantage, 0.0)

    zeros = jnp.zeros_like(rewards[:, 0])
    _, advantages = jax.lax.scan(back, (zeros, zeros), (rewards.T, values.T, mask.T), reverse=True)
    advantages = advantages.T
    return advantages, jnp.where(mask, advantages + values, 0.0)


def whiten(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Zero mean and unit variance over the True elements of the whole batch, 0 elsewhere.

    (x - mean) / sqrt(var + 1e-8), with the biased variance of the unmasked elements.

    Args:
      x: float32[B, R].
      mask: bool[B, R].

    Returns:
      float32[B, R].
    """
    chex.assert_equal_shape([x, mask])
    chex.assert_type(x, jnp.float32)
    mean = losses.masked_mean(x, mask)
    centred = jnp.where(mask, x - mean, 0.0)
    variance = losses.masked_mean(jnp.square(centred), mask)
    return centred * jax.lax.rsqrt(variance + 1e-8)
