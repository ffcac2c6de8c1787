"""A config's decoding, lowered for a mesh from shapes alone: sampling, reading, choosing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cai_jax.decoding import bursts, reading
from cai_jax.decoding.calls import FEEDS, NODES, SIZES, STEPS
from cai_jax.decoding.sampling import Rule
from cai_jax.mesh import fitted
from cai_jax.models import kv_cache
from cai_jax.models.config import ModelConfig
from cai_jax.models.unstacked import abstract_unstacked, laying_out, split
from cai_jax.plan.program import Part, Program, local_bytes, sharded
from cai_jax.plan.training import forward_flops, params_of

STOPS = 64  # states of a stop automaton
PREFIX = 2048  # tokens that all slots read first
TOKEN, READ = "a token a slot", f"read {SIZES[-1]} tokens"  # names of programs


@dataclasses.dataclass(frozen=True)
class Shapes:
    """An engine's buffers on a mesh, without data. Attributes: as the engine's."""

    config: ModelConfig
    mesh: Mesh
    slots: int
    length: int
    dtype: jnp.dtype

    @functools.cached_property
    def params(self):
        """The weights, in decoding's layout."""
        return abstract_unstacked(params_of(self.config), self.mesh, self.dtype)

    @property
    def weights(self) -> int:
        """Bytes of `params` on a device."""
        tied = self.config.tied_embeddings
        return local_bytes({k: v for k, v in self.params.items() if k != "head" or not tied})

    @functools.cached_property
    def cache(self) -> kv_cache.KVCache:
        """Keys and values of all slots."""
        empty = functools.partial(kv_cache.empty, self.config, self.slots, self.length, self.dtype)
        shapes = jax.eval_shape(empty)
        return jax.tree.map(lambda x: self.array(x.shape, x.dtype, *kv_cache.AXES), shapes)

    @property
    def logits(self) -> jax.ShapeDtypeStruct:
        """The newest of every slot."""
        return self.array((self.slots, self.config.vocab_size), jnp.float32, *reading.LOGITS)

    def array(self, shape: tuple[int, ...], kind, *names: str | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, kind, sharding=fitted(self.mesh, shape, *names))

    @property
    def static(self) -> dict:
        return {"config": self.config, "dtype": jnp.dtype(self.dtype), "mesh": self.mesh}


def burst(s: Shapes) -> jax.stages.Lowered:
    """`bursts.decode` for all slots and their whole length."""
    column = lambda kind: s.array((s.slots,), kind)  # noqa: E731
    draws = bursts.Draws(
        active=column(bool),
        fresh=column(bool),
        pending=column(jnp.int32),
        key=s.array((s.slots, 2), jnp.uint32),
        segment=column(jnp.int32),
        sampled=column(jnp.int32),
        least=column(jnp.int32),
        limit=column(jnp.int32),
        rule=Rule(column(jnp.float32), column(jnp.float32), column(jnp.int32)),
        stop_state=column(jnp.int32),
    )
    return bursts.decode.lower(
        s.params, s.cache, s.logits, None, column(jnp.int32), column(jnp.int32), draws,
        s.array((STOPS, s.config.vocab_size), jnp.int16), s.array((2,), jnp.int32),
        s.array((), jnp.int32), **s.static, limit=s.length, steps=STEPS,
    )  # fmt: skip


def readers(s: Shapes) -> dict[str, jax.stages.Lowered]:
    """What reads, behind a shared prefix: full calls of `reading.extend`, the first layer, for all
    before the last, and the last with its logits, and the first of `reading.score`."""

    def keys_and_values(count: int, size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        empty = functools.partial(kv_cache.empty, s.config, count, size, s.dtype)
        one = jax.eval_shape(empty).layers[0]
        return tuple(s.array(x.shape, x.dtype, *kv_cache.AXES) for x in one)

    def stream(tokens: int):
        rotated = s.config.rotary_dim or s.config.head_dim
        angle = s.array((rotated // 2, tokens), jnp.float32, *reading.STREAM)
        return s.array((s.config.embed, tokens), s.dtype, *reading.STREAM), (angle, angle)

    tokens = SIZES[-1]
    layer = s.params["layers"][0]
    head = {name: x for name, x in s.params.items() if name not in ("embed", "layers")}
    first, last = (s.static | {"window": s.config.windows[n]} for n in (0, -1))
    held = keys_and_values(s.slots, s.length)
    shared = (*keys_and_values(1, PREFIX), s.array((), jnp.int32))
    column = jax.ShapeDtypeStruct((score_rows(s.slots),), jnp.int32)
    pack = functools.partial(reading.pack, tokens=tokens, total=s.slots)
    packed = jax.eval_shape(pack, column, column, column)
    packed = jax.tree.map(lambda x: s.array(x.shape, x.dtype), packed)
    rows, nodes = column.shape[0], NODES[1]
    ints = s.array(column.shape, jnp.int32)
    return {
        "read layer": reading.extend_layer.lower(
            layer, held, shared, *stream(tokens), packed, **first
        ),
        "last read layer": reading.extend_last.lower(
            layer, head, held, s.logits, shared, *stream(tokens), packed, **last
        ),
        "score layer": reading.score_layer.lower(
            layer, held, shared, *stream(rows * nodes), ints, ints,
            s.array((rows, nodes), jnp.int32), s.array((rows, nodes, nodes), bool), **first,
        ),
    }  # fmt: skip


def score_rows(slots: int) -> int:
    """How many slots' options a full call scores."""
    return min(slots, SIZES[-1] // FEEDS)


def score_name(slots: int) -> str:
    """The name of the program that scores options."""
    return f"score {score_rows(slots) * NODES[1]} tokens"


def decoding_programs(s: Shapes) -> Iterator[Program]:
    """What the stages that ask the model run; its params in training's layout stay beside.

    A token sampled in every slot, each of its whole length; a full call that reads; a full call
    that scores tokens of options. Left out: what takes less than a layer, such as copies of
    slots.
    """
    held = s.weights + local_bytes((s.cache, s.logits))
    beside = local_bytes(sharded(params_of(s.config, s.dtype), s.mesh))
    forward = forward_flops(params_of(s.config), s.length, s.config)
    make = functools.partial(Program, group="engine", held=held, beside=beside, params=s.weights)
    yield make(TOKEN, parts=(Part(burst(s), steps=STEPS),), flops=s.slots * forward)
    parts, layers = readers(s), s.config.layers
    read = Part(parts["read layer"], layers - 1), Part(parts["last read layer"])
    yield make(READ, parts=read, flops=SIZES[-1] * forward)
    rows = score_rows(s.slots) * NODES[1]
    score = (Part(parts["score layer"], layers),)
    yield make(score_name(s.slots), parts=score, flops=rows * forward)


def relayout(s: Shapes, policy: Any, beside: int) -> Program:
    """PPO's policy, its shapes in training's layout, to decoding's; `beside`: what PPO holds with
    it."""
    layer, others = laying_out(policy, s.mesh, s.dtype)
    stack, rest = split(policy)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    parts = (
        Part(layer.lower(stack, number, dtype=s.dtype), s.config.layers),
        Part(others.lower(rest, dtype=s.dtype)),
    )
    size = local_bytes(policy)
    both = size + s.weights
    return Program("PPO, to decode", "engine", parts, both, beside - size, 0.0, both)
