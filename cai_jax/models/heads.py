"""A scalar read from hidden states: the preference model's score and the value function."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cai_jax.models.transformer import Params


def with_scalar_head(params: Params) -> Params:
    """A language model's trunk with a fresh scalar head, zero so that all scores start equal."""
    return beside_scalar_head({k: v for k, v in params.items() if k != "lm_head"})


def beside_scalar_head(params: Params) -> Params:
    """A whole language model with a fresh scalar head, zero, on the same trunk."""
    width = params["final_norm"]["scale"].shape[0]
    head = {"kernel": jnp.zeros((width, 1), jnp.float32), "bias": jnp.zeros((1,), jnp.float32)}
    return {**params, "scalar_head": head}


def without_scalar_head(params: Params) -> Params:
    """The same arrays but the head's."""
    return {k: v for k, v in params.items() if k != "scalar_head"}


def rescaled(params: Params, mean: float, deviation: float) -> Params:
    """A model whose scalar is (scalar - mean) / deviation."""
    kernel, bias = params["scalar_head"]["kernel"], params["scalar_head"]["bias"]
    head = {"kernel": kernel / deviation, "bias": (bias - mean) / deviation}
    return {**params, "scalar_head": head}


def scalar(params: Params, hidden: jax.Array) -> jax.Array:
    """[..., D] -> float32[...]."""
    head = params["scalar_head"]
    product = jnp.dot(hidden.astype(jnp.float32), head["kernel"].astype(jnp.float32))
    return (product + head["bias"].astype(jnp.float32))[..., 0]


def last_token(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """The hidden state [B, D] at each row's last real token, whatever the padding's side."""
    length = mask.shape[1]
    last = jnp.max(jnp.where(mask, jnp.arange(length), -1), axis=1)
    return jnp.take_along_axis(hidden, jnp.maximum(last, 0)[:, None, None], axis=1)[:, 0]
