"""RL-CAI: PPO against the preference model, with a KL penalty to SL-CAI (section 4.2).

The companion paper (2204.05862, section 4) gives the objective, r_PM - lambda * KL, clip 0.2 and
gamma 1. What both papers leave open is chosen here and set in the config: the penalty is spread
over the tokens, the score falls on the last token, advantages are GAE's and whitened, and the value
function is a trunk of its own that starts as the preference model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.datasets.prompts import PromptRow
from cai_jax.decoding.engine import Engine
from cai_jax.decoding.respond import respond
from cai_jax.encoding import prompt_tokens
from cai_jax.evaluation.goodhart import HeldOut, turned, watch
from cai_jax.losses import clipped_policy_loss, clipped_value_loss, masked_mean
from cai_jax.mesh import layout, place, shard_batch
from cai_jax.models.config import ModelConfig
from cai_jax.models.scoring import reply_logprobs, reply_values
from cai_jax.models.transformer import Params
from cai_jax.prompts import Format
from cai_jax.records import Provenance
from cai_jax.shards import Shards
from cai_jax.training import optimizer, state
from cai_jax.training.checkpoint import Checkpoints
from cai_jax.training.loop import TrainingError, not_finite
from cai_jax.training.metrics import MetricsLog
from cai_jax.training.optimizer import OptimizerConfig
from cai_jax.training.preemption import save_and_stop
from cai_jax.training.rollout import (
    Minibatch,
    Models,
    Sampled,
    advantages_of,
    make_rollout,
    minibatches,
    scored_length,
    stream,
)

RATIO_TOLERANCE = 1e-3  # float32 rounding of two compilations of one forward pass stays below


@dataclasses.dataclass(frozen=True)
class Settings:
    """Attributes:
    updates: rollouts in all.
    batch_size: responses a rollout.
    prompt_tokens: longest prompt; longer ones are left out.
    response_tokens: limit of a response; 128 in the companion paper.
    temperature: of the policy, when it samples and when it is scored.
    epochs: passes over a rollout; the companion paper's K is 1, 2 or 4.
    minibatches: optimiser steps a pass.
    kl_coefficient: lambda; 0.001 in the companion paper.
    gamma: discount a token; 1 in the companion paper.
    lam: GAE's lambda.
    clip: of the probability ratio; 0.2 in the companion paper.
    value_clip: of the value's change, in units of the score.
    stock_phrase: words whose share among the responses is logged; empty for none.
    stop_when_held_out_falls: N stops before the last update once the held-out preference model's
      mean score over N updates is below that over the N before; 0 never does. Between few
      responses chance alone makes such a difference.
    save_every: updates between checkpoints.
    remat: what the backward pass recomputes, a key of models.transformer.REMAT.
    optimizer: of the policy; the companion paper's learning rate is 0.01 of pretraining.
    value_optimizer: of the value function.
    """

    updates: int
    batch_size: int
    prompt_tokens: int
    response_tokens: int
    temperature: float
    epochs: int
    minibatches: int
    kl_coefficient: float
    gamma: float
    lam: float
    clip: float
    value_clip: float
    stock_phrase: str
    stop_when_held_out_falls: int
    save_every: int
    remat: str
    optimizer: OptimizerConfig
    value_optimizer: OptimizerConfig

    def __post_init__(self):
        if self.batch_size % self.minibatches:
            raise ValueError(
                f"ppo.batch_size ({self.batch_size}) is not a multiple of ppo.minibatches "
                f"({self.minibatches}); change one of them."
            )
        if self.temperature <= 0:
            raise ValueError(
                f"ppo.temperature is {self.temperature}; a policy needs one above 0 to explore."
            )


def make_policy_loss(config: ModelConfig, settings: Settings):
    """loss(params, Minibatch) -> (clipped surrogate, metrics)."""

    def loss_fn(params: Params, batch: Minibatch):
        r = batch.rollout
        logprobs, entropies = reply_logprobs(
            config, params, r.prompt, r.prompt_mask, r.response, r.mask, settings.temperature,
            settings.remat,
        )  # fmt: skip
        loss, metrics = clipped_policy_loss(
            logprobs, r.logprobs, batch.advantages, r.mask, settings.clip
        )
        moved = jnp.where(r.mask, jnp.abs(jnp.exp(logprobs - r.logprobs) - 1), 0.0)
        entropy = masked_mean(entropies, r.mask)
        return loss, {**metrics, "policy/entropy": entropy, "policy/ratio_error": moved.max()}

    return loss_fn


def make_value_loss(config: ModelConfig, settings: Settings):
    """loss(params, Minibatch) -> (clipped squared error, metrics)."""

    def loss_fn(params: Params, batch: Minibatch):
        r = batch.rollout
        values = reply_values(
            config, params, r.prompt, r.prompt_mask, r.response, r.mask, settings.remat
        )
        return clipped_value_loss(values, r.values, batch.returns, r.mask, settings.value_clip)

    return loss_fn


def fitting(settings: Settings, tokenizer, form: Format, rows: list[PromptRow]) -> list[PromptRow]:
    """Prompts of at most `settings.prompt_tokens`.

    Raises:
      ValueError: there are none.
    """
    kept = [
        row
        for row in rows
        if len(prompt_tokens(tokenizer, form, row.conversation)) <= settings.prompt_tokens
    ]
    if not kept:
        raise ValueError(
            f"none of {len(rows)} prompts fits ppo.prompt_tokens ({settings.prompt_tokens}); "
            "raise it."
        )
    return kept


def train_ppo(
    settings: Settings,
    engine: Engine,
    form: Format,
    policy_params: Params,
    ref_params: Params,
    pm_params: Params,
    rows: list[PromptRow],
    directory: Path,
    seed: int,
    provenance: Provenance,
    progress: Callable[[int, int, dict], None],
    mesh: jax.sharding.Mesh | None = None,
    held_out: HeldOut | None = None,
    asked: Callable[[], bool] = lambda: False,
) -> Params:
    """Trains the policy; resumes from the newest checkpoint in `directory`.

    Args:
      engine: decodes with the policy; its params are set at every update.
      policy_params: the start; its buffers are taken over.
      ref_params, pm_params: frozen; of any float dtype.
      rows: prompts; each update takes the next `batch_size` of an endless reshuffled stream.
      mesh: over which the models, optimiser states and batches are split; None for one device.
      held_out: a preference model that scores the responses too, and trains nothing.
      asked: whether to save and stop, from `preemption.noted`; asked twice an update.

    Raises:
      TrainingError: a loss is not finite, and its rollout is in `directory`/bad_batch.npz; or the
        policy that is trained is not the one that sampled.
      Terminated: `asked` said so, and the message's update is saved.
    """
    config = engine.config
    rows = fitting(settings, engine.tokenizer, form, rows)
    steps = settings.updates * settings.epochs * settings.minibatches
    opt = optimizer.make(settings.optimizer, steps)
    value_opt = optimizer.make(settings.value_optimizer, steps)
    start = jax.tree.map(lambda x: jnp.array(x, jnp.float32), pm_params)
    states = {
        "policy": state.create(policy_params, opt),
        "value": state.create(start, value_opt),
    }
    states = place(states, mesh)
    laid_out = layout(states)
    policy_step = state.make_step(
        make_policy_loss(config, settings), opt, state_shardings=laid_out["policy"]
    )
    value_step = state.make_step(
        make_value_loss(config, settings), value_opt, state_shardings=laid_out["value"]
    )
    checkpoints = Checkpoints(directory / "checkpoints", keep=2)
    log = MetricsLog(directory / "metrics.jsonl")
    shards = Shards(directory / "rollouts")
    done = 0
    if (restored := checkpoints.restore(states)) is not None:
        states, extra = restored
        done = extra["update"]
    log.truncate(done)
    for update in range(done, settings.updates):
        window = settings.stop_when_held_out_falls
        if window and turned(log.rows(), window):
            break
        part = stream(rows, settings.batch_size, update, seed)
        engine.params = states["policy"].params
        replies = respond(
            engine,
            form,
            [(name, row.conversation) for name, row in part],
            stream="ppo",
            seed=seed,
            samples=1,
            max_new_tokens=settings.response_tokens,
            temperature=settings.temperature,
        )
        engine.params = None  # lets go of its own layout of the weights while these train
        replies = [reply for (reply,) in replies]
        rollout = make_rollout(
            config,
            Models(states["policy"].params, ref_params, states["value"].params, pm_params),
            engine.tokenizer,
            form,
            [row.conversation for _, row in part],
            replies,
            prompt_tokens_limit=settings.prompt_tokens,
            response_tokens_limit=settings.response_tokens,
            temperature=settings.temperature,
            mesh=mesh,
        )
        texts = [(row.conversation, r.text) for (_, row), r in zip(part, replies, strict=True)]
        length = scored_length(settings.prompt_tokens, settings.response_tokens)
        monitored, others = watch(
            engine, form, texts, rollout.score, settings.stock_phrase, held_out, length, mesh
        )
        if asked():  # nothing is trained on the rollout yet: it is drawn again
            reached = f"update {update} of {settings.updates}"
            save_and_stop(checkpoints, update, states, {"update": update}, reached)
        data, metrics = advantages_of(
            rollout, settings.kl_coefficient, settings.gamma, settings.lam
        )
        parts = minibatches(data, settings.minibatches, settings.epochs, seed, update)
        last: dict[str, jax.Array] = {}
        for number, minibatch in enumerate(parts):
            minibatch = shard_batch(minibatch, mesh)
            states["policy"], last = policy_step(states["policy"], minibatch)
            error = float(last["policy/ratio_error"])
            if number == 0:
                metrics["policy/first_ratio_error"] = last["policy/ratio_error"]
                if not error < RATIO_TOLERANCE:
                    raise TrainingError(
                        f"PPO update {update}: the policy gives its own samples other "
                        f"probabilities than when it drew them (ratio off by {error:.2g}); "
                        "the weights or the temperature changed in between, or hold NaN."
                    )
            states["value"], value_metrics = value_step(states["value"], minibatch)
        values = {**metrics, **_named(last, "policy"), **_named(value_metrics, "value")}
        values = {name: float(v) for name, v in jax.device_get(values).items()} | monitored
        bad = [name for name, v in values.items() if not np.isfinite(v)]
        if bad:
            when = f"PPO update {update}"
            raise not_finite(bad[0], values[bad[0]], when, data, directory, checkpoints)
        shards.write(update, _records(update, part, replies, rollout, others, provenance))
        log.write(update + 1, values)
        progress(update + 1, settings.updates, values)
        if (update + 1) % settings.save_every == 0 and update + 1 < settings.updates:
            checkpoints.save(update + 1, states, {"update": update + 1})
        if asked():
            reached = f"update {update + 1} of {settings.updates}"
            save_and_stop(checkpoints, update + 1, states, {"update": update + 1}, reached)
    checkpoints.close()
    return states["policy"].params


def _named(metrics: dict[str, jax.Array], prefix: str) -> dict[str, jax.Array]:
    """A step's metrics under the model's own prefix."""
    return {
        name.replace("train/", f"{prefix}/"): value
        for name, value in metrics.items()
        if name != "train/count"
    }


def _records(update, part, replies, rollout, others, provenance) -> list[Sampled]:
    kl = np.where(rollout.mask, np.asarray(rollout.logprobs) - rollout.ref_logprobs, 0).sum(-1)
    return [
        Sampled(
            update=update,
            id=row.id,
            kind=row.kind,
            prompt=row.conversation,
            response=reply.text,
            stop_reason=reply.stop_reason,
            score=float(score),
            kl=float(k),
            provenance=provenance,
            held_out_score=other,
        )
        for (_, row), reply, score, k, other in zip(
            part, replies, np.asarray(rollout.score), kl, others, strict=True
        )
    ]
