"""From a scored rollout to what PPO learns from: rewards, advantages, and what the run reports."""

from __future__ import annotations

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from cai_jax.batch import Rollout
from cai_jax.logprobs import KL_ESTIMATORS
from cai_jax.losses import masked_mean
from cai_jax.mesh import constrain, traced_mesh_of
from cai_jax.returns import gae, leave_one_out, shaped_rewards, whiten

# The metric of each estimator: KL from the reference in nats a response, mean over the rollout.
KL_METRICS = {"k1": "objective/kl", "k2": "objective/kl_k2", "k3": "objective/kl_k3"}


@flax.struct.dataclass
class Minibatch:
    """Rows of a rollout with what PPO derives from them.

    Attributes:
      advantages: float32[B, R].
      returns: float32[B, R], what the value function learns; None where there is none.
      reward: float32[B], each response's in all.
    """

    rollout: Rollout
    advantages: jax.Array
    returns: jax.Array | None
    reward: jax.Array


@partial(
    jax.jit,
    static_argnames=("gamma", "lam", "estimator", "placement", "samples", "whitened"),
)
def advantages_of(
    rollout: Rollout,
    kl_coefficient: jax.Array,
    gamma: float,
    lam: float,
    credit: jax.Array | None = None,
    *,
    estimator: str = "k1",
    placement: str = "tokens",
    samples: int = 1,
    whitened: bool = True,
) -> tuple[Minibatch, dict[str, jax.Array]]:
    """Advantages and returns of a rollout, and what the run reports of it.

    With values they are GAE's. Without, each token has the advantage of its response, by leave one
    out among `samples` responses to a prompt, which stand together; gamma and lam have no part in
    it.

    Args:
      credit: float32[B], what each response is rewarded with at its last token; its score unless
        given.
      estimator, placement: see returns.shaped_rewards.
      whitened: whether advantages get zero mean and unit variance over all tokens.
    """
    mesh = traced_mesh_of(rollout.logprobs)
    # It is small: each device computes all of it, in the same order, whatever the mesh.
    r = jax.tree.map(lambda x: constrain(x, mesh), rollout)
    credit = r.score if credit is None else credit
    rewards = shaped_rewards(
        credit, r.logprobs, r.ref_logprobs, r.mask, kl_coefficient, estimator, placement
    )
    reward = rewards.sum(-1)
    metrics = {
        "objective/score": r.score.mean(),
        "objective/reward": reward.mean(),
        "objective/response_tokens": r.mask.sum(-1).mean(),
    }
    for name, estimate in KL_ESTIMATORS.items():
        kl = jnp.where(r.mask, estimate(r.logprobs, r.ref_logprobs), 0.0).sum(-1)
        metrics[KL_METRICS[name]] = kl.mean()
    if r.values is None:
        advantages = jnp.where(r.mask, leave_one_out(reward, samples)[:, None], 0.0)
        returns = None
    else:
        advantages, returns = gae(rewards, r.values, r.mask, gamma, lam)
        unexplained = _variance(returns - r.values, r.mask) / (_variance(returns, r.mask) + 1e-8)
        metrics["value/mean"] = masked_mean(r.values, r.mask)
        metrics["value/explained_variance"] = 1 - unexplained
    if whitened:
        advantages = whiten(advantages, r.mask)
    data = Minibatch(r, advantages, returns, reward)
    return jax.tree.map(lambda x: constrain(x, mesh), data), metrics


def _variance(x: jax.Array, mask: jax.Array) -> jax.Array:
    mean = masked_mean(x, mask)
    return masked_mean(jnp.square(x - mean), mask)
