"""What training changes, and the one shape of every training step.

The optimiser is static: it is given to `create` and `make_step` and is no part of the state, so a
checkpoint holds arrays only. Reference and preference models are arguments of the step and have
neither gradients nor optimiser state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cai_jax.training import optimizer as optimizer_lib

PyTree = Any
Metrics = dict[str, jax.Array]
LossFn = Callable[..., tuple[jax.Array, Metrics]]


@flax.struct.dataclass
class TrainState:
    """What one optimiser step turns into the next.

    Attributes:
      step: int32[], optimiser steps so far.
      params: float32 tree.
      opt_state: the optimiser's, for these params alone.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree


def create(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """A state at step 0. `params` are taken over: the first step donates their buffers."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def apply_gradients(
    state: TrainState, gradients: PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
    """One optimiser step."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    microbatches: int = 1,
    state_shardings: TrainState | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds a jitted `step(state, batch, *frozen) -> (state, metrics)`; `state` is donated.

    Args:
      loss_fn: loss_fn(params, batch, *frozen) -> (loss float32[], metrics of float32[]). The loss
        is a mean; with microbatches > 1 its metrics hold "count", the size of that mean (targets,
        pairs, tokens).
      optimizer: from `optimizer.make`.
      microbatches: that a batch is split into; its leading axis is a multiple of it. Gradients,
        loss and metrics are means over microbatches weighted by count, so the update is that of
        the whole batch; of metrics named "max_..." after their group it is the greatest.
      state_shardings: layout of the returned state; the caller puts the first state there.

    Returns:
      The step. Its metrics: the loss_fn's own, and "train/loss", "train/grad_norm" (before
      clipping), "train/learning_rate", and "train/count" where loss_fn gives a "count".

    Raises:
      ValueError: while tracing: a batch that doesn't divide, or no "count" when it is needed.
    """

    def step(state: TrainState, batch: PyTree, *frozen: PyTree) -> tuple[TrainState, Metrics]:
        def whole(params, part):
            return jax.value_and_grad(loss_fn, has_aux=True)(params, part, *frozen)

        if microbatches == 1:
            (loss, metrics), gradients = whole(state.params, batch)
        else:
            (loss, metrics), gradients = _accumulated(whole, state.params, batch, microbatches)
        state = apply_gradients(state, gradients, optimizer)
        metrics = dict(metrics)
        if "count" in metrics:
            metrics["train/count"] = metrics.pop("count")
        metrics["train/loss"] = loss
        metrics["train/grad_norm"] = optax.tree.norm(gradients)
        metrics["train/learning_rate"] = optimizer_lib.last_learning_rate(state.opt_state)
        return state, metrics

    # A prefix of the outputs' layout: the metrics' is left to the compiler.
    out_shardings = None if state_shardings is None else (state_shardings, None)
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def _accumulated(gradient_fn, params: PyTree, batch: PyTree, parts: int):
    """((loss, metrics), gradients) of the whole batch, one microbatch in memory at a time."""

    def split(x):
        if x.shape[0] % parts:
            raise ValueError(
                f"A batch of {x.shape[0]} rows does not divide into {parts} microbatches; "
                "change batch_size or microbatches."
            )
        # Microbatch i takes rows i, i + parts, ...: each device keeps a share of its own rows.
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def weighted(part):
        (loss, metrics), gradients = gradient_fn(params, part)
        if "count" not in metrics:
            raise ValueError("Gradient accumulation needs a loss_fn whose metrics hold 'count'.")
        metrics, maxima = dict(metrics), {}
        count = jnp.asarray(metrics.pop("count"), jnp.float32)
        for name in [name for name in metrics if name.split("/")[-1].startswith("max_")]:
            maxima[name] = metrics.pop(name)
        # A microbatch without any target weighs nothing, whatever its mean came to.
        scale = jax.tree.map(
            lambda x: jnp.where(count > 0, count * x, jnp.zeros_like(x)),
            ((loss, metrics), gradients),
        )
        return (scale, count), maxima

    def body(total, part):
        found, maxima = weighted(part)
        return jax.tree.map(jnp.add, total, found), maxima

    microbatches = jax.tree.map(split, batch)
    shapes, _ = jax.eval_shape(weighted, jax.tree.map(lambda x: x[0], microbatches))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (sums, count), maxima = jax.lax.scan(body, zeros, microbatches)
    (loss, metrics), gradients = jax.tree.map(lambda x: x / jnp.maximum(count, 1e-6), sums)
    metrics |= {name: x.max() for name, x in maxima.items()} | {"count": count}
    return (loss, metrics), gradients
