"""What one optimiser step of PPO lowers, for the policy and for the value function."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cai_jax.losses import clipped_policy_loss, clipped_value_loss, masked_mean
from cai_jax.models.config import ModelConfig
from cai_jax.models.scoring import reply_logprobs, reply_logprobs_and_values, reply_values
from cai_jax.models.transformer import Params
from cai_jax.training.advantages import Minibatch
from cai_jax.training.state import LossFn


def make_policy_loss(
    config: ModelConfig, temperature: float, clip: float, remat: str, dtype: str = "float32"
) -> LossFn:
    """loss(params, Minibatch) -> (clipped surrogate, metrics).

    Args:
      temperature: at which the responses were sampled.
      clip: of the probability ratio.
      remat: what the backward pass recomputes, a key of models.transformer.REMAT.
      dtype: of activations and matrix products.
    """

    def loss_fn(params: Params, batch: Minibatch):
        r = batch.rollout
        logprobs, entropies = reply_logprobs(
            config, params, r.prompt, r.prompt_mask, r.response, r.mask, temperature, remat, dtype
        )
        return _policy_loss(logprobs, entropies, batch, clip)

    return loss_fn


def make_value_loss(config: ModelConfig, clip: float, remat: str, dtype: str = "float32") -> LossFn:
    """loss(params, Minibatch) -> (clipped squared error, metrics); `clip` in units of the score."""

    def loss_fn(params: Params, batch: Minibatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        r = batch.rollout
        values = reply_values(
            config, params, r.prompt, r.prompt_mask, r.response, r.mask, remat, dtype
        )  # fmt: skip
        loss, metrics = clipped_value_loss(values, r.values, batch.returns, r.mask, clip)
        return loss, {**metrics, "count": r.mask.sum().astype(jnp.float32)}

    return loss_fn


def make_shared_loss(
    config: ModelConfig,
    temperature: float,
    clip: float,
    value_clip: float,
    value_coefficient: float,
    remat: str,
    dtype: str = "float32",
) -> LossFn:
    """loss(params, Minibatch) -> (clipped surrogate + coefficient * value loss, metrics).

    Of one trunk with both heads, in one pass; arguments as above.
    """

    def loss_fn(params: Params, batch: Minibatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        r = batch.rollout
        logprobs, entropies, values = reply_logprobs_and_values(
            config, params, r.prompt, r.prompt_mask, r.response, r.mask, temperature, remat, dtype
        )
        policy, metrics = _policy_loss(logprobs, entropies, batch, clip)
        value, of_value = clipped_value_loss(values, r.values, batch.returns, r.mask, value_clip)
        metrics |= of_value | {"policy/surrogate": policy, "value/loss": value}
        return policy + value_coefficient * value, metrics

    return loss_fn


def _policy_loss(
    logprobs: jax.Array, entropies: jax.Array, batch: Minibatch, clip: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    r = batch.rollout
    loss, metrics = clipped_policy_loss(logprobs, r.logprobs, batch.advantages, r.mask, clip)
    moved = jnp.where(r.mask, jnp.abs(jnp.exp(logprobs - r.logprobs) - 1), 0.0)
    entropy = masked_mean(entropies, r.mask)
    metrics |= {"policy/entropy": entropy, "policy/max_ratio_error": moved.max()}
    return loss, {**metrics, "count": r.mask.sum().astype(jnp.float32)}
