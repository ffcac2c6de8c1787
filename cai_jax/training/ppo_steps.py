"""PPO's optimiser steps: the states they turn into the next, and the pass over an update."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from cai_jax.mesh import layout, place, shard_batch
from cai_jax.models import heads, lora
from cai_jax.models.config import ModelConfig
from cai_jax.models.lora import Adapted, Lora
from cai_jax.models.transformer import Params
from cai_jax.training import optimizer, state
from cai_jax.training.advantages import Minibatch
from cai_jax.training.loop import TrainingError, save_batch
from cai_jax.training.ppo_losses import make_policy_loss, make_shared_loss, make_value_loss
from cai_jax.training.ppo_settings import Settings

# Of the first importance ratio, by compute dtype: 4e-6 and 0 in quickstarts on CPU. Elsewhere a
# step's program may round bfloat16 in other places than the rollout's; accelerators are unmeasured.
RATIO_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}


def start(
    settings: Settings,
    config: ModelConfig,
    policy_params: Params,
    pms: Sequence[Params],
    mean: float,
    deviation: float,
    mesh: jax.sharding.Mesh | None,
    adapters: Lora,
    seed: int,
) -> tuple[dict[str, state.TrainState], dict[str, Callable], dict[str, Adapted]]:
    """States at step 0, and the jitted step of each, under the names "policy" and "value".

    With adapters their states are of these alone, and the models that they are of come third.
    """
    s = settings
    total = s.updates * s.epochs * s.minibatches
    if s.shares_trunk:
        shared = make_shared_loss(
            config, s.temperature, s.clip, s.value_clip, s.value_coefficient, s.remat,
            s.compute_dtype,
        )  # fmt: skip
        losses = {"policy": shared}
        starts = {"policy": heads.beside_scalar_head(policy_params)}
    else:
        losses = {
            "policy": make_policy_loss(config, s.temperature, s.clip, s.remat, s.compute_dtype)
        }
        starts = {"policy": policy_params}
    opts = {"policy": optimizer.make(s.optimizer, total)}
    if s.has_value and not s.shares_trunk:
        opts["value"] = optimizer.make(s.value_optimizer, total)
        losses["value"] = make_value_loss(config, s.value_clip, s.remat, s.compute_dtype)

        def copied(tree):
            if adapters.rank:
                return tree
            return jax.tree.map(lambda x: jnp.array(x, jnp.float32), tree)

        if s.value_init == "zero_head":
            starts["value"] = heads.with_scalar_head(copied(policy_params))
        else:
            starts["value"] = heads.rescaled(copied(pms[0]), mean, deviation)
    starts = {n: lora.adapted(x, adapters, seed, f"ppo {n}") for n, x in starts.items()}
    adapted = {name: x for name, x in starts.items() if isinstance(x, Adapted)}
    starts |= {name: x.trained for name, x in adapted.items()}
    losses |= {name: x.loss(losses[name]) for name, x in adapted.items()}
    states = place({name: state.create(starts[name], opts[name]) for name in starts}, mesh)
    laid_out = layout(states)
    steps = {
        name: state.make_step(losses[name], opts[name], s.microbatches, laid_out[name])
        for name in starts
    }
    for name, x in adapted.items():
        steps[name] = functools.partial(_beside, steps[name], x.base)
    return states, steps, adapted


def _beside(step: Callable, base: Params, state: state.TrainState, batch: Minibatch):
    return step(state, batch, base)


def trained(
    settings: Settings, states: dict[str, state.TrainState], adapted: dict[str, Adapted]
) -> tuple[Params, Params | None]:
    """The policy without a scalar head, and the value function, None where there is none."""
    found = {
        name: adapted[name].joined(of.params) if name in adapted else of.params
        for name, of in states.items()
    }
    if settings.shares_trunk:
        return heads.without_scalar_head(found["policy"]), found["policy"]
    return found["policy"], found.get("value")


def train_on(
    settings: Settings,
    states: dict[str, state.TrainState],
    steps: dict[str, Callable],
    parts: list[Minibatch],
    update: int,
    mesh: jax.sharding.Mesh | None,
    directory: Path,
) -> dict[str, jax.Array]:
    """Optimiser steps on each minibatch, in place of `states`; metrics of the last.

    One whose policy is further than `stop_update_at_kl` from the one that sampled, where that is
    not 0, is the last.

    Raises:
      TrainingError: the policy is not the one that sampled; the minibatch is in
        `directory`/bad_batch.npz.
    """
    found: dict[str, jax.Array] = {}
    for number, minibatch in enumerate(parts, start=1):
        minibatch = shard_batch(minibatch, mesh)
        states["policy"], last = steps["policy"](states["policy"], minibatch)
        error = float(last["policy/max_ratio_error"])
        if number == 1:
            found["policy/first_ratio_error"] = last["policy/max_ratio_error"]
            if not error < RATIO_TOLERANCE[settings.compute_dtype]:
                raise TrainingError(
                    f"PPO update {update}: the policy gives its own samples other "
                    f"probabilities than when it drew them (ratio off by {error:.2g}); the weights "
                    "or the temperature changed in between, or hold NaN: its batch is in "
                    f"{save_batch(directory, minibatch)}."
                )
        found |= _named(last, "policy") | {"policy/minibatches": number}
        if "value" in states:
            states["value"], last_value = steps["value"](states["value"], minibatch)
            found |= _named(last_value, "value")
        limit = settings.stop_update_at_kl
        if limit and float(last["policy/kl_to_old"]) > limit:
            break
    return found


def _named(metrics: dict[str, jax.Array], prefix: str) -> dict[str, jax.Array]:
    """A step's metrics under the model's own prefix."""
    return {
        name.replace("train/", f"{prefix}/"): value
        for name, value in metrics.items()
        if name != "train/count"
    }
