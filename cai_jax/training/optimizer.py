"""The optimiser and its learning-rate schedule, from one small config."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cai_jax import rng

PyTree = Any


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Everything an optimiser needs.

    Attributes:
      kind: "adamw" (Loshchilov and Hutter 1711.05101) or "adafactor" (Shazeer and Stern
        1804.04235: factored second moments, hence little memory; its decay 1 - t^-0.8 replaces
        b2, and b1 above 0 adds a momentum buffer).
      learning_rate: the peak.
      schedule: "constant", "linear" or "cosine" after the warmup; the last two end at 0 after
        total_steps.
      warmup_steps: steps of linear rise; step 0 has learning_rate / warmup_steps.
      weight_decay: decoupled, times the learning rate; on kernels and adapters only, never on
        norms, biases or embeddings.
      b1, b2: decay of the first and second moments.
      eps: added to the root of the second moment.
      clip_norm: largest global norm of the gradients; inf turns clipping off.
      moment_dtype: "float32", or "bfloat16" to store the moments in half the memory.
    """

    kind: str
    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    b1: float
    b2: float
    eps: float
    clip_norm: float
    moment_dtype: str

    def __post_init__(self):
        for name, allowed in {
            "kind": ("adamw", "adafactor"),
            "schedule": ("constant", "linear", "cosine"),
            "moment_dtype": ("float32", "bfloat16"),
        }.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"Optimiser {name} is {getattr(self, name)!r}; it must be one of "
                    f"{', '.join(allowed)}."
                )
        for name, good, must in (
            ("learning_rate", self.learning_rate >= 0, "at least 0"),
            ("warmup_steps", self.warmup_steps >= 0, "at least 0"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("b1", 0 <= self.b1 < 1, "in [0, 1)"),
            ("b2", 0 <= self.b2 < 1, "in [0, 1)"),
            ("eps", self.eps > 0, "above 0"),
            ("clip_norm", self.clip_norm > 0, "above 0 (inf for no clipping)"),
        ):
            if not good:
                raise ValueError(f"Optimiser {name} is {getattr(self, name)}; it must be {must}.")


class LearningRateState(NamedTuple):
    """count int32[]: updates so far; learning_rate float32[]: that of the last one."""

    count: jax.Array
    learning_rate: jax.Array


def make(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Clip, then Adam or Adafactor, then weight decay, then the scheduled learning rate.

    `total_steps`, warmup included, is where a schedule that decays ends.

    Its state lies like the params it was initialised with, so it takes their shardings.
    """
    parts = []
    if math.isfinite(config.clip_norm):
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    if config.kind == "adamw":
        parts.append(_scale_by_adam(config))
    else:
        # Adafactor adds its epsilon to the squared gradient, not to the root.
        parts.append(optax.scale_by_factored_rms(epsilon=config.eps**2))
        parts.append(optax.clip_by_block_rms(1.0))
        if config.b1 > 0:
            dtype = jnp.dtype(config.moment_dtype)
            parts.append(optax.ema(config.b1, debias=False, accumulator_dtype=dtype))
    if config.weight_decay > 0:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=_decayed))
    parts.append(_scale_by_schedule(config, total_steps))
    return optax.chain(*parts)


def learning_rate(config: OptimizerConfig, total_steps: int, step: jax.Array | int) -> jax.Array:
    """The learning rate of the update that follows `step` updates: int32[] -> float32[]."""
    step = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum((step + 1) / max(config.warmup_steps, 1), 1.0)
    span = max(total_steps - config.warmup_steps, 1)
    progress = jnp.clip((step - config.warmup_steps) / span, 0.0, 1.0)
    decay = {
        "constant": jnp.float32(1.0),
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    }[config.schedule]
    return config.learning_rate * warm * decay


def last_learning_rate(opt_state: PyTree) -> jax.Array:
    """The learning rate of the update that made `opt_state`: float32[]."""
    return opt_state[-1].learning_rate


def _scale_by_schedule(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    def init(params):
        del params
        return LearningRateState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates, state, params=None):
        del params
        rate = learning_rate(config, total_steps, state.count)
        updates = jax.tree.map(lambda u: -rate * u, updates)
        return updates, LearningRateState(state.count + 1, rate)

    return optax.GradientTransformation(init, update)


def _scale_by_adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam whose moments are kept in config.moment_dtype and updated in float32."""
    inner = optax.scale_by_adam(config.b1, config.b2, config.eps)
    if config.moment_dtype == "float32":
        return inner

    def store(state):
        leaves, structure = jax.tree.flatten((state.mu, state.nu))
        leaves = [_round_to_bfloat16(x, state.count, n) for n, x in enumerate(leaves)]
        mu, nu = jax.tree.unflatten(structure, leaves)
        return state._replace(mu=mu, nu=nu)

    def load(state):
        mu, nu = jax.tree.map(lambda x: x.astype(jnp.float32), (state.mu, state.nu))
        return state._replace(mu=mu, nu=nu)

    def init(params):
        state = inner.init(params)  # of zeros, which need no rounding
        mu, nu = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (state.mu, state.nu))
        return state._replace(mu=mu, nu=nu)

    def update(updates, state, params=None):
        updates, state = inner.update(updates, load(state), params)
        return updates, store(state)

    return optax.GradientTransformation(init, update)


def _round_to_bfloat16(x: jax.Array, *salts: int | jax.Array) -> jax.Array:
    """Stochastic rounding, float32[...] -> bfloat16[...], right in expectation.

    Rounding to nearest would freeze a moment: bfloat16 has 8 bits, and one step with b2 = 0.999
    changes it by less than half of the last.
    """
    noise = rng.counter_bits(x.shape, *salts) >> 16
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    high = (bits & jnp.uint32(0xFFFF0000)).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(high, jnp.float32).astype(jnp.bfloat16)


def _decayed(params: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) in ("kernel", "a", "b"), params
    )
