"""One batch of PPO's experience: sampled responses, what four models say of them, advantages."""

from __future__ import annotations

import dataclasses
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cai_jax import rng
from cai_jax.batch import Rollout
from cai_jax.conversation import Conversation
from cai_jax.datasets.prompts import PromptRow
from cai_jax.decoding.respond import Reply
from cai_jax.encoding import prompt_tokens
from cai_jax.losses import masked_mean
from cai_jax.mesh import shard_batch
from cai_jax.models.config import ModelConfig
from cai_jax.models.scoring import jit_reply_logprobs, jit_reply_values, score_texts
from cai_jax.models.transformer import Params
from cai_jax.prompts import Format
from cai_jax.records import Kind, Provenance, Record
from cai_jax.returns import gae, shaped_rewards, whiten
from cai_jax.tokenizer import Tokenizer

RETOKENIZED = 8  # tokens by which a reply's text may come out longer than its sampled tokens


@dataclasses.dataclass(frozen=True)
class Sampled(Record):
    """One response of a rollout. Attributes: update, from 0; id of the prompt; kl to the reference
    in nats, summed over the response; held_out_score, of the preference model of the other half
    of the comparisons, where there is one."""

    update: int
    id: str
    kind: Kind
    prompt: Conversation
    response: str
    stop_reason: str
    score: float
    kl: float
    provenance: Provenance
    held_out_score: float | None = None


@flax.struct.dataclass
class Minibatch:
    """Rows of a rollout with what PPO derives from them; advantages, returns float32[B, R]."""

    rollout: Rollout
    advantages: jax.Array
    returns: jax.Array


@partial(jax.jit, static_argnames=("gamma", "lam"))
def advantages_of(
    rollout: Rollout, kl_coefficient: jax.Array, gamma: float, lam: float
) -> tuple[Minibatch, dict[str, jax.Array]]:
    """Whitened advantages and returns of a rollout, and what the run reports of it."""
    r = rollout
    rewards = shaped_rewards(r.score, r.logprobs, r.ref_logprobs, r.mask, kl_coefficient)
    advantages, returns = gae(rewards, r.values, r.mask, gamma, lam)
    kl = jnp.where(r.mask, r.logprobs - r.ref_logprobs, 0.0).sum(-1)
    metrics = {
        "objective/score": r.score.mean(),
        "objective/kl": kl.mean(),
        "objective/reward": rewards.sum(-1).mean(),
        "objective/response_tokens": r.mask.sum(-1).mean(),
        "value/mean": masked_mean(r.values, r.mask),
        "value/explained_variance": 1
        - _variance(returns - r.values, r.mask) / (_variance(returns, r.mask) + 1e-8),
    }
    return Minibatch(rollout, whiten(advantages, r.mask), returns), metrics


def _variance(x: jax.Array, mask: jax.Array) -> jax.Array:
    mean = masked_mean(x, mask)
    return masked_mean(jnp.square(x - mean), mask)


@flax.struct.dataclass
class Models:
    """The four params of PPO: policy, reference (its frozen start), value and preference model."""

    policy: Params
    reference: Params
    value: Params
    pm: Params


def make_rollout(
    config: ModelConfig,
    models: Models,
    tokenizer: Tokenizer,
    form: Format,
    prompts: list[Conversation],
    replies: list[Reply],
    *,
    prompt_tokens_limit: int,
    response_tokens_limit: int,
    temperature: float,
    mesh: jax.sharding.Mesh | None = None,
) -> Rollout:
    """Pads the texts and lets the four models say what they think of them.

    Policy, reference and value read the very tokens that were sampled. The preference model reads
    the text as it was trained to: closed by the end token, also where sampling met its limit.

    Args:
      prompt_tokens_limit, response_tokens_limit: P and R.
      temperature: at which the replies were sampled.
    """
    prompt, prompt_mask = _padded(
        [prompt_tokens(tokenizer, form, p) for p in prompts], prompt_tokens_limit, left=True
    )
    response, mask = _padded([r.tokens for r in replies], response_tokens_limit, left=False)
    texts = shard_batch((prompt, prompt_mask, response, mask), mesh)
    logprobs, _ = jit_reply_logprobs(config, models.policy, *texts, temperature)
    ref_logprobs, _ = jit_reply_logprobs(config, models.reference, *texts, temperature)
    score = score_texts(
        config,
        models.pm,
        tokenizer,
        form,
        [(p, r.text) for p, r in zip(prompts, replies, strict=True)],
        batch_size=len(replies),
        length=scored_length(prompt_tokens_limit, response_tokens_limit),
        mesh=mesh,
    )
    return Rollout(
        prompt=prompt,
        prompt_mask=prompt_mask,
        response=response,
        mask=mask,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=jit_reply_values(config, models.value, *texts),
        score=score,
    )


def scored_length(prompt_tokens_limit: int, response_tokens_limit: int) -> int:
    """Tokens of the longest text of a rollout that a preference model reads."""
    return prompt_tokens_limit + response_tokens_limit + RETOKENIZED


def stream(
    rows: list[PromptRow], batch_size: int, update: int, seed: int
) -> list[tuple[str, PromptRow]]:
    """The prompts of one update, each under a name of its own: its place in the stream."""
    found = []
    for n in range(update * batch_size, (update + 1) * batch_size):
        epoch, i = divmod(n, len(rows))
        row = rows[rng.permutation(len(rows), seed, "ppo prompts", epoch)[i]]
        found.append((f"{n}/{row.id}", row))
    return found


def minibatches(
    data: Minibatch, count: int, epochs: int, seed: int, update: int
) -> list[Minibatch]:
    """Every epoch's `count` minibatches; the order is drawn for each update and epoch."""
    found = []
    for epoch in range(epochs):
        number = update * epochs + epoch
        order = rng.permutation(len(data.rollout.score), seed, "ppo minibatches", number)
        for rows in np.split(order, count):
            found.append(jax.tree.map(lambda x, rows=rows: x[rows], data))
    return found


def _padded(rows: list, length: int, left: bool) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(0, len(row))
        tokens[i, place], mask[i, place] = row, True
    return tokens, mask
