"""A config's training steps, lowered for a mesh from shapes alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cai_jax.batch import ComparisonBatch, Rollout, TokenBatch
from cai_jax.mesh import batch_sharding
from cai_jax.models import heads, int8, lora, transformer
from cai_jax.models.config import ModelConfig
from cai_jax.models.scoring import jit_reply_logprobs, jit_reply_values, jit_score
from cai_jax.plan.program import Part, Program, local_bytes, sharded
from cai_jax.settings import RunSettings
from cai_jax.stages import dpo, preference_model, supervised
from cai_jax.training import flops, optimizer, state
from cai_jax.training.advantages import Minibatch
from cai_jax.training.optimizer import OptimizerConfig
from cai_jax.training.ppo_losses import make_policy_loss, make_shared_loss, make_value_loss

PyTree = Any


def params_of(config: ModelConfig, dtype: jnp.dtype = jnp.float32) -> PyTree:
    """Shapes of a language model's params."""
    shapes = jax.eval_shape(functools.partial(transformer.init, config), jax.random.key(0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)


def frozen(s: RunSettings, params: PyTree, dtype: str) -> PyTree:
    """Shapes of params that PPO does not train."""
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), params)
    return jax.eval_shape(int8.quantized, params) if s.frozen_int8 else params


def policy_of(s: RunSettings, config: ModelConfig, mesh: Mesh) -> PyTree:
    """Shapes of PPO's policy as it is held: float32, or frozen with adapters beside its kernels."""
    if not s.lora.rank:
        return sharded(params_of(config), mesh)

    def joined(params: PyTree) -> PyTree:
        adapted = lora.adapted(params, s.lora, 0, "")
        return adapted.joined(adapted.trained)

    base = frozen(s, params_of(config), s.ppo.compute_dtype)
    return sharded(jax.eval_shape(joined, base), mesh)


def forward_flops(params: PyTree, length: int, config: ModelConfig) -> float:
    """FLOPs of a token's forward pass, of the three parts of a training step one."""
    shape = flops.shape_of(params, config.experts_per_token)
    return flops.flops_per_token(*shape, length, config.windows) / 3


def training_steps(s: RunSettings, config: ModelConfig, mesh: Mesh) -> Iterator[Program]:
    """Every stage's steps, in the run's order.

    Raises:
      ValueError: a dimension that the mesh does not divide.
    """
    policy = params_of(config)
    scorer = jax.eval_shape(heads.with_scalar_head, policy)
    rows = functools.partial(_rows, mesh)

    def base_of(params, kept) -> PyTree:
        """What adapters leave frozen of params, as it is `kept`."""
        return sharded(
            kept(jax.eval_shape(lambda p: lora.adapted(p, s.lora, 0, "").base, params)), mesh
        )

    def read(base: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(s.dtype)), base)

    def step(name, group, params, loss, opt: OptimizerConfig, batch, of, length, kept=read):
        made, base, whole = optimizer.make(opt, 1_000_000), (), params
        if s.lora.rank:
            base = (base_of(params, kept),)
            params = jax.eval_shape(lambda p: lora.adapted(p, s.lora, 0, "").trained, params)
            adapted = lora.Adapted(*base, params, s.lora.alpha / s.lora.rank)
            loss, whole = adapted.loss(loss), jax.eval_shape(adapted.joined, params)
        start = sharded(jax.eval_shape(lambda p: state.create(p, made), params), mesh)
        layout = jax.tree.map(lambda x: x.sharding, start)
        program = state.make_step(loss, made, of.microbatches, layout)
        tokens = math.prod(batch_shape(batch))
        shape = flops.shape_of(whole, config.experts_per_token)
        model = tokens * flops.flops_per_token(*shape, length, config.windows)
        again = 4 / 3 if of.remat == "full" else 1  # the forward pass, a third of the three
        parts = (Part(program.lower(start, batch, *base)),)
        return Program(
            name, group, parts, local_bytes((start, base)), 0, model * again,
            params=local_bytes((start.params, base)), optimizer=local_bytes(start.opt_state),
            gradients=local_bytes(start.params),
        )  # fmt: skip

    f = s.finetune
    size = f.batch_size, f.length
    ids, real = rows(size, jnp.int32), rows(size, jnp.bool_)
    loss = supervised.make_loss(config, f.remat, f.compute_dtype)
    batch = TokenBatch(ids, ids, ids, real)
    yield step("finetune", "finetune", policy, loss, f.optimizer, batch, f, f.length)

    p = s.preference_model
    pairs = _pairs(rows, p.batch_size, p.length)
    loss = preference_model.make_loss(config, p.remat, p.compute_dtype)
    yield step(
        "preference model", "preference_model", scorer, loss, p.optimizer, pairs, p, p.length
    )

    if s.algorithm == "dpo":
        d = s.dpo
        pairs = _pairs(rows, d.batch_size, d.length)
        column = rows((d.batch_size,), jnp.int32), rows((d.batch_size, 2), jnp.float32)
        batch = dpo.Batch(pairs, *column)
        loss = dpo.make_loss(config, d)
        yield step("DPO", "dpo", policy, loss, d.optimizer, batch, d, d.length)
        return

    o = s.ppo
    size, length = o.batch_size // o.minibatches, o.prompt_tokens + o.response_tokens
    batch = _minibatch(rows, size, o.prompt_tokens, o.response_tokens, o.has_value)
    # While PPO trains it holds the reference and what scores: preference models, or the judge.
    # With adapters the reference is the policy's base.
    of = lambda dtype: local_bytes(sharded(frozen(s, policy, dtype), mesh))  # noqa: E731
    reference = lambda params: frozen(s, params, o.compute_dtype)  # noqa: E731
    scorers = (p.members + p.halves) * local_bytes(sharded(scorer, mesh))
    models = 0 if s.lora.rank else of(o.compute_dtype)
    models += of(s.dtype) if s.rated else scorers
    if o.shares_trunk:
        both = jax.eval_shape(heads.beside_scalar_head, policy)
        loss = make_shared_loss(
            config, o.temperature, o.clip, o.value_clip, o.value_coefficient, o.remat,
            o.compute_dtype,
        )  # fmt: skip
        only = step("PPO", "ppo", both, loss, o.optimizer, batch, o, length, reference)
        yield dataclasses.replace(only, beside=models)
        return
    make = functools.partial(step, group="ppo", batch=batch, of=o, length=length)
    loss = make_policy_loss(config, o.temperature, o.clip, o.remat, o.compute_dtype)
    first = make("PPO, policy", params=policy, loss=loss, opt=o.optimizer, kept=reference)
    if not o.has_value:
        yield dataclasses.replace(first, beside=models)
        return
    loss = make_value_loss(config, o.value_clip, o.remat, o.compute_dtype)
    kept = reference if o.value_init == "zero_head" else lambda scorer: scorer
    value = make("PPO, value", params=scorer, loss=loss, opt=o.value_optimizer, kept=kept)
    total = models + first.held + value.held
    if s.lora.rank:  # the value function's base is a preference model, or the policy's base
        total -= local_bytes(base_of(scorer, kept))
    yield dataclasses.replace(first, beside=total - first.held)
    yield dataclasses.replace(value, beside=total - value.held)


def scoring_programs(
    s: RunSettings, config: ModelConfig, mesh: Mesh, holds: int
) -> Iterator[Program]:
    """What PPO asks of its models about a whole batch: log-probabilities, values, scores.

    Args:
      holds: bytes on a device of all that PPO holds.
    """
    o = s.ppo
    length = o.prompt_tokens + o.response_tokens
    asked, said = (o.batch_size, o.prompt_tokens), (o.batch_size, o.response_tokens)
    rows = functools.partial(_rows, mesh)
    texts = (
        rows(asked, jnp.int32),
        rows(asked, jnp.bool_),
        rows(said, jnp.int32),
        rows(said, jnp.bool_),
    )
    whole = params_of(config)
    policy = policy_of(s, config, mesh)
    scorer = sharded(jax.eval_shape(heads.with_scalar_head, whole), mesh)

    def make(name: str, params: PyTree, lowered: jax.stages.Lowered) -> Program:
        size = local_bytes(params)
        shape = whole if params is policy else params
        work = o.batch_size * length * forward_flops(shape, length, config)
        return Program(f"PPO, {name}", "ppo", (Part(lowered),), size, holds - size, work, size)

    static = {"dtype": o.compute_dtype}
    lowered = jit_reply_logprobs.lower(config, policy, *texts, o.temperature, **static)
    yield make("log-probs", policy, lowered)
    if o.has_value:
        yield make("values", scorer, jit_reply_values.lower(config, scorer, *texts, **static))
    if not s.rated:
        whole = (o.batch_size, length)
        batch = rows(whole, jnp.int32), rows(whole, jnp.bool_)
        yield make("scores", scorer, jit_score.lower(config, scorer, *batch))


def batch_shape(batch: PyTree) -> tuple[int, ...]:
    """Shape of a batch's tokens: rows, or pairs of rows, by tokens of one."""
    if isinstance(batch, Minibatch):
        r = batch.rollout
        return r.prompt.shape[0], r.prompt.shape[1] + r.response.shape[1]
    return (batch.comparisons if isinstance(batch, dpo.Batch) else batch).tokens.shape


def _rows(mesh: Mesh, shape: tuple[int, ...], kind) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, kind, sharding=batch_sharding(mesh))


def _pairs(rows, size: int, length: int) -> ComparisonBatch:
    shape = size, 2, length
    column = rows((size,), jnp.float32)
    return ComparisonBatch(rows(shape, jnp.int32), rows(shape, jnp.bool_), column, column)


def _minibatch(rows, size: int, prompt: int, response: int, has_value: bool) -> Minibatch:
    asked, said = (size, prompt), (size, response)
    number, column = rows(said, jnp.float32), rows((size,), jnp.float32)
    values = number if has_value else None
    rollout = Rollout(
        rows(asked, jnp.int32), rows(asked, jnp.bool_), rows(said, jnp.int32),
        rows(said, jnp.bool_), number, number, values, column,
    )  # fmt: skip
    return Minibatch(rollout, number, values, column)
