"""PPO's settings. docs/ppo.md gives the reason of each default that the papers leave open."""

from __future__ import annotations

import dataclasses

from cai_jax.logprobs import KL_ESTIMATORS
from cai_jax.training.optimizer import OptimizerConfig

_CHOICES = {
    "advantage": ("gae", "leave_one_out"),
    "reward": ("preference_model", "rating"),
    "truncated_score_at": ("end_token", "last_token"),
    "kl_estimator": tuple(KL_ESTIMATORS),
    "kl_placement": ("tokens", "last_token"),
    "value_init": ("preference_model", "zero_head"),
    "value_trunk": ("own", "shared"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Attributes:
    updates: rollouts in all.
    batch_size: responses a rollout.
    samples: responses to each prompt of a rollout.
    prompt_tokens: longest prompt; longer ones are left out.
    response_tokens: limit of a response; 128 in the companion paper.
    temperature: of the policy, when it samples and when it is scored.
    reward: "preference_model", or "rating": the feedback model's expected rating of the response
      from 1 to 10, on a scale from -1 to 1 (direct RLAIF, 2309.00267).
    deviations: of the scores of an ensemble's members (`preference_model.members`): so many are
      subtracted from their mean.
    truncated_score_at: where the preference model scores a response that met its limit: at the
      "end_token" that closes all texts it was trained on, or at the response's "last_token".
    truncation_penalty: subtracted from the score of such a response, after `scale_score`.
    baseline_responses: so many of SL-CAI's responses are scored first, and their mean is
      subtracted from every score; 0 subtracts nothing.
    scale_score: divide scores by those responses' standard deviation.
    epochs: passes over a rollout; the companion paper's K is 1, 2 or 4.
    minibatches: optimiser steps a pass.
    microbatches: that each of them goes through the model in, one after the other: less memory,
      and the step is still the whole minibatch's.
    stop_update_at_kl: leave out an update's remaining minibatches once one finds the policy this
      far from the one that sampled, in nats a token (k3); 0 never does.
    kl_coefficient: lambda; 0.001 in the companion paper. Where it adapts, its start.
    kl_target: nats a response that the coefficient adapts to (1909.08593, section 2.2); 0 keeps it
      fixed.
    kl_horizon: responses over which it adapts, at least `batch_size`.
    kl_estimator: "k1", "k2" or "k3", of each token; see logprobs.
    kl_placement: the penalty of a response falls on its "tokens", each its own, or whole on its
      "last_token".
    advantage: "gae", or "leave_one_out", which trains no value function: a response's reward less
      the mean of the others' to the same prompt (2402.14740), for each of its tokens.
    whiten: give advantages zero mean and unit variance over the rollout's tokens.
    gamma: discount a token; 1 in the companion paper.
    lam: GAE's lambda.
    clip: of the probability ratio; 0.2 in the companion paper.
    value_init: the value function starts as the "preference_model", or as SL-CAI with a
      "zero_head".
    value_trunk: the value function's "own", with its own optimiser, or the policy's, "shared": one
      loss then trains both, and `value_optimizer` has no part in it.
    value_coefficient: of the value function's loss beside the policy's, on a shared trunk.
    value_clip: of the value's change, in units of the score.
    stock_phrase: words whose share among the responses is logged; empty for none.
    stop_when_held_out_falls: N stops before the last update once the held-out preference model's
      mean score over N updates is below that over the N before; 0 never does. Between few
      responses chance alone makes such a difference.
    save_every: updates between checkpoints.
    remat: what the backward pass recomputes, a key of models.transformer.REMAT.
    compute_dtype: of activations and matrix products, "float32" or "bfloat16"; params, gradients
      and the optimiser's arithmetic are float32. The preference model scores in float32.
    optimizer: of the policy; the companion paper's learning rate is 0.01 of pretraining.
    value_optimizer: of the value function.
    """

    updates: int
    batch_size: int
    samples: int
    prompt_tokens: int
    response_tokens: int
    temperature: float
    reward: str
    deviations: float
    truncated_score_at: str
    truncation_penalty: float
    baseline_responses: int
    scale_score: bool
    epochs: int
    minibatches: int
    microbatches: int
    stop_update_at_kl: float
    kl_coefficient: float
    kl_target: float
    kl_horizon: int
    kl_estimator: str
    kl_placement: str
    advantage: str
    whiten: bool
    gamma: float
    lam: float
    clip: float
    value_init: str
    value_trunk: str
    value_coefficient: float
    value_clip: float
    stock_phrase: str
    stop_when_held_out_falls: int
    save_every: int
    remat: str
    compute_dtype: str
    optimizer: OptimizerConfig
    value_optimizer: OptimizerConfig

    def __post_init__(self):
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"ppo.{name} is '{getattr(self, name)}'; it must be one of {', '.join(known)}."
                )
        for name in ("minibatches", "samples"):
            parts = getattr(self, name)
            if parts < 1 or self.batch_size % parts:
                raise ValueError(
                    f"ppo.batch_size ({self.batch_size}) is not a multiple of ppo.{name} "
                    f"({parts}); change one of them."
                )
        if self.temperature <= 0:
            raise ValueError(
                f"ppo.temperature is {self.temperature}; a policy needs one above 0 to explore."
            )
        if self.advantage == "leave_one_out" and self.samples < 2:
            raise ValueError(
                f"ppo.samples is {self.samples}, and ppo.advantage='leave_one_out' compares the "
                "responses to one prompt; raise ppo.samples."
            )
        if self.scale_score and self.baseline_responses < 2:
            raise ValueError(
                f"ppo.baseline_responses is {self.baseline_responses}, and ppo.scale_score divides "
                "by the deviation of their scores; raise it to say 256."
            )
        if self.has_value and self.reward == "rating" and self.value_init != "zero_head":
            raise ValueError(
                f"ppo.value_init is '{self.value_init}', and ppo.reward='rating' uses no "
                "preference model; set ppo.value_init='zero_head'."
            )
        if self.shares_trunk and self.value_init != "zero_head":
            raise ValueError(
                f"ppo.value_init is '{self.value_init}', whose head reads another trunk than the "
                "policy's, which ppo.value_trunk='shared' asks for; set ppo.value_init='zero_head'."
            )
        if self.kl_target and (not self.kl_coefficient or self.kl_horizon < self.batch_size):
            raise ValueError(
                f"ppo.kl_target is {self.kl_target}, and a coefficient adapts from a "
                f"ppo.kl_coefficient ({self.kl_coefficient}) above 0 over a ppo.kl_horizon "
                f"({self.kl_horizon}) of at least ppo.batch_size ({self.batch_size}); change them."
            )

    @property
    def has_value(self) -> bool:
        """Whether a value function is trained."""
        return self.advantage == "gae"

    @property
    def shares_trunk(self) -> bool:
        """Whether the value function is a head on the policy's trunk."""
        return self.has_value and self.value_trunk == "shared"
