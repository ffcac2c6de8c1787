"""Slots on TPU: attention to what stands in them, by `slot_kernel`, and what is written there.

In decoding a token is a tile, in reading some tokens of one row that follow each other. What all
rows read first is one slot, at which all tokens look together; what the same queries got of both is
joined exactly.

The compiler splits no kernel over devices: on a mesh each attends to its own slots, with its own kv
heads. In reading, whose rows are on every device, what the devices got is added up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cai_jax.mesh import AxisNames, fitted
from cai_jax.models.kv_cache import AXES, Layer
from cai_jax.models.slot_kernel import attend_tiles
from cai_jax.models.tiles import State, Tiles

Shared = tuple[jax.Array, jax.Array, jax.Array]  # keys, values and length


def by_kernel(mesh: Mesh | None) -> bool:
    """Whether attention to slots is by this kernel: on TPU, of whatever head dim."""
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return platform == "tpu"


def decode_attention(
    q: jax.Array,
    held: Layer,
    shared: Shared | None,
    seen: jax.Array,
    mesh: Mesh | None,
    begins: jax.Array | None = None,
    softcap: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """One token in each slot attends to what all rows read first, and to its slot.

    Args:
      q: [S, K, G, C].
      held: k [K, S, C, P] and v [K, S, P, C], the new tokens' among them.
      shared: keys [K, 1, C, P], values [K, 1, P, C] and length int32[], or None.
      seen: int32[S], how much of its slot each token sees.
      mesh: over which slots and kv heads are split as `kv_cache.empty` does; None for one device.
      begins, softcap: as in `tiles.tiled_attention`; int32[S].
      interpret: whether to run the kernel's Python, on any device, for tests.

    Returns:
      [S, K, G, C]; zeros where nothing is seen.
    """

    kernel = functools.partial(attend_tiles, softcap=softcap, interpret=interpret)

    def attend(q, held, shared, seen, begins):
        q = (q * q.shape[-1] ** -0.5).swapaxes(0, 1)
        limits = jnp.broadcast_to(seen[:, None], q.shape[1:3])
        lowest = None if begins is None else jnp.broadcast_to(begins[:, None], q.shape[1:3])
        own = kernel(q, held, jnp.arange(len(seen)), limits, lowest)
        return _joined([own, *_to_shared(q, shared, begins, kernel)], q.dtype).swapaxes(0, 1)

    names = (AXES[::-1], AXES, AXES, AXES[1:], AXES[1:])
    return _on(mesh, attend, (q, held, shared, seen, begins), names)


def read_attention(
    q: jax.Array,
    held: Layer,
    shared: Shared | None,
    slots: jax.Array,
    tiles: Tiles,
    before: State | None,
    mesh: Mesh | None,
    begins: jax.Array | None = None,
    softcap: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`tiles.tiled_attention` by the kernel; `mesh` and `interpret` as in `decode_attention`."""
    kernel = functools.partial(attend_tiles, softcap=softcap, interpret=interpret)
    split = mesh and fitted(mesh, held[0].shape, *AXES).spec[1]  # axes of the mesh, over slots

    def attend(q, held, shared, slots, tiles, before, begins):
        q = (q * q.shape[-1] ** -0.5).swapaxes(0, 1)
        kv_heads, tokens, group, size = q.shape
        count, width = tiles.index.shape
        slot, here = slots[tiles.rows], held[0].shape[1]
        if split:
            slot -= jax.lax.axis_index(split) * here
        index = jnp.where(((slot >= 0) & (slot < here))[:, None], tiles.index, tokens)

        def taken(x: jax.Array) -> jax.Array:
            """What tokens have, [K, N G, X] or [K, N, G, X], by tiles: [K, M, T G, X]."""
            x = x.reshape(kv_heads, tokens, group, -1)
            x = x.at[:, index].get(mode="fill", fill_value=0)
            return x.reshape(kv_heads, count, width * group, -1)

        limits = jnp.minimum(tiles.first[:, None] + 1 + jnp.arange(width), tiles.ends[:, None])
        limits = jnp.repeat(jnp.where(index < tokens, limits, 0), group, axis=1)
        lowest = None
        if begins is not None:
            lowest = begins.at[index].get(mode="fill", fill_value=0)
            lowest = jnp.repeat(lowest, group, axis=1)
        own = kernel(taken(q), held, slot, limits, lowest, used=-(-tokens // width))
        others = [*_to_shared(q, shared, begins, kernel), *([] if before is None else [before])]
        got = _joined([own, *(tuple(map(taken, state)) for state in others)], q.dtype)
        got = got.reshape(kv_heads, count, width, group, size)
        out = jnp.zeros_like(q).at[:, index].set(got, mode="drop").swapaxes(0, 1)
        return jax.lax.psum(out, split) if split else out

    names = ((None, *AXES[:1]), AXES, AXES, (), (), AXES[:1], ())
    return _on(mesh, attend, (q, held, shared, slots, tiles, before, begins), names)


def write(
    held: Layer,
    new: Layer,
    slots: jax.Array | None,
    places: jax.Array,
    mesh: Mesh | None,
) -> Layer:
    """`kv_cache.write`, to heads and slots as one axis; slots None where each has a token.

    Were heads an axis by themselves, the compiler would lay them out next to the last one to
    write, and move all keys and values there and back for each token.
    """
    split = mesh and fitted(mesh, held[0].shape, *AXES).spec[1]

    def write_here(held, new, slots, places):
        kv_heads, count = held[0].shape[:2]
        if slots is None:
            slots = jnp.arange(count)
        elif split:
            slots -= jax.lax.axis_index(split) * count
        inside = (slots >= 0) & (slots < count)
        rows = jnp.where(inside, jnp.arange(kv_heads)[:, None] * count + slots, kv_heads * count)
        k, v = (x.reshape(kv_heads * count, *x.shape[2:]) for x in held)
        new_k, new_v = (x.swapaxes(0, 1).astype(k.dtype) for x in new)
        k = k.at[rows, :, places].set(new_k, mode="drop")
        v = v.at[rows, places].set(new_v, mode="drop")
        return tuple(x.reshape(kv_heads, count, *x.shape[1:]) for x in (k, v))

    by_slot = (AXES[::-1], (), AXES[1:]) if slots is None else ((None, *AXES[:1]), (), ())
    return _on(mesh, write_here, (held, new, slots, places), (AXES, *by_slot))


def _to_shared(
    q: jax.Array, shared: Shared | None, begins: jax.Array | None, kernel: Callable[..., State]
) -> list[State]:
    """What queries [K, N, G, C] get of what all rows read first, if anything: [K, N, G, X]."""
    if shared is None:
        return []
    *held, length = shared
    limits = jnp.full((1, q.shape[1] * q.shape[2]), length)
    if begins is not None:
        begins = jnp.repeat(begins + length, q.shape[2])[None]
    everyone = q.reshape(len(q), 1, -1, q.shape[-1])
    state = kernel(everyone, tuple(held), jnp.zeros(1, jnp.int32), limits, begins)
    return [tuple(x.reshape(*q.shape[:3], -1) for x in state)]


def _joined(states: list[State], dtype: jnp.dtype) -> jax.Array:
    """Attention to all of what each state is of a part; zeros where nothing is seen."""
    highest = functools.reduce(jnp.maximum, [maximum for maximum, _, _ in states])
    fades = [jnp.exp(maximum - highest) for maximum, _, _ in states]
    total = sum(fade * one for fade, (_, one, _) in zip(fades, states, strict=True))
    values = sum(fade * one for fade, (_, _, one) in zip(fades, states, strict=True))
    return (values / jnp.where(total > 0, total, 1)).astype(dtype)


def _on(
    mesh: Mesh | None, act: Callable[..., Any], args: tuple, names: tuple[AxisNames, ...]
) -> Any:
    """On every device its part of arguments with such names of their first axes, and of a result
    with the first one's."""
    if mesh is None:
        return act(*args)
    specs = tuple(
        jax.tree.map(lambda x, axes=axes: fitted(mesh, x.shape, *axes).spec, arg)
        for arg, axes in zip(args, names, strict=True)
    )
    # The kernel does not say along which axes its results vary.
    return jax.shard_map(act, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*args)
